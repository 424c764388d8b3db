from pathlib import Path

import pytest

from thumbnet import engine


def system(root: Path, groups: str, **files: str) -> Path:
    """Write the files of control groups as Linux shows them; `__` stands for a slash, `_DOT_` for a dot."""
    for name, text in {"proc__self__cgroup": groups, **files}.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


V1 = "4:memory:/pod\n3:cpu,cpuacct:/pod/app\n1:name=systemd:/\n0::/"


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/", {"cpu_DOT_max": "400000 100000"}, 4.0),
        ("0::/", {"cpu_DOT_max": "max 100000"}, None),
        ("0::/pod/app", {"pod__app__cpu_DOT_max": "max 100000", "pod__cpu_DOT_max": "150000 100000"}, 1.5),
        ("0::/pod/app", {"pod__app__cpu_DOT_max": "200000 100000", "pod__cpu_DOT_max": "800000 100000"}, 2.0),
        (V1, {"cpu__pod__app__cpu_DOT_cfs_quota_us": "250000", "cpu__pod__app__cpu_DOT_cfs_period_us": "100000"}, 2.5),
        # In a container the group's name is that of the host, and its folder the uppermost.
        (V1, {"cpu__cpu_DOT_cfs_quota_us": "50000", "cpu__cpu_DOT_cfs_period_us": "100000"}, 0.5),
        (V1, {"cpu__cpu_DOT_cfs_quota_us": "-1", "cpu__cpu_DOT_cfs_period_us": "100000"}, None),
        ("0::/", {}, None),
    ],
)
def test_the_quota_of_control_groups(tmp_path: Path, groups: str, files: dict[str, str], quota: float | None) -> None:
    named = {f"sys__fs__cgroup__{name}": text for name, text in files.items()}
    assert engine.cpu_quota(system(tmp_path, groups, **named)) == quota


def test_no_control_groups(tmp_path: Path) -> None:
    assert engine.cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("quota", "sharers", "expected"),
    [(None, 1, 64), (4.0, 1, 4), (1.5, 1, 2), (0.1, 1, 1), (128.0, 1, 64), (4.0, 2, 2), (4.0, 8, 1)],
)
def test_threads_stay_within_the_quota(
    quota: float | None, sharers: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "visible_cores", lambda: 64)
    monkeypatch.setattr(engine, "cpu_quota", lambda: quota)
    assert engine.usable_cores(sharers) == expected
