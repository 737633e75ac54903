"""A temporary workspace of DVC shares features and trials with its project."""

from pipeline.common.dvc_workspace import project_of, share_with_project


def test_a_workspace_shares_folders_that_are_not_outputs(tmp_path):
    project = tmp_path / "a project"
    here = project / ".dvc/tmp/exps/standalone/tmpx"
    (project / "data/features/abc").mkdir(parents=True)
    here.mkdir(parents=True)
    for _ in range(2):
        share_with_project(["data/features", "runs", "/absolute", "../outside"], here)
    assert (here / "data/features/abc").is_dir()
    (here / "runs/new").mkdir()
    assert (project / "runs/new").is_dir(), "a trial outlives the workspace"
    assert not (project.parent / "outside").exists()


def test_a_folder_of_pointers_keeps_them(tmp_path):
    here = tmp_path / ".dvc/tmp/exps/tmpx"
    (tmp_path / "runs/abc").mkdir(parents=True)
    (here / "runs").mkdir(parents=True)
    (here / "runs/abc.dvc").write_text("outs: []")
    share_with_project(["runs"], here)
    assert (here / "runs/abc").is_dir()
    assert (here / "runs/abc.dvc").read_text() == "outs: []"


def test_other_folders_are_not_linked(tmp_path):
    assert project_of(tmp_path) is None
    share_with_project(["runs"], tmp_path)
    assert not list(tmp_path.iterdir())
