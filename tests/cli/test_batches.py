from alit_hf.cli.batches import run_jobs
from alit_hf.cli.jobs import Job


def test_whatever_is_wrong_with_one_file_stops_nothing(tmp_path, capsys):
    jobs = [Job(tmp_path / name, tmp_path / "out" / name) for name in ("a", "bad", "c")]

    def read(path):
        if path.name == "bad":
            raise SyntaxError("not a TIFF file")
        return path.name

    done, num_failed = run_jobs(jobs, read, lambda items: items, lambda item, path: item.upper(), 2, 0, "working")
    assert [written for _, written in done] == ["A", "C"]
    assert num_failed == 1
    assert "bad: not a TIFF file" in capsys.readouterr().err
