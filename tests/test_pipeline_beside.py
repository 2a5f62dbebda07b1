"""The stages of dvc.yaml beside the table, at a tiny size, in a temporary clone: studies and sets."""

import json

from pipeline_helpers import BESIDE, Clone


def test_studies_and_sets_run_and_a_changed_one_runs_its_own_stages_only(tmp_path):
    clone = Clone(tmp_path, beside=True)
    targets = ["compare@quick", "examine-bsds500", "examine-split"]
    studied = {f"study@quick-{name}-0" for name in BESIDE["variations"]} | {
        "rival@quick-size-autoencoder-3-0"
    }
    sets = {f"{stage}-set@quick-{name}" for stage in ("download", "corrupt") for name in BESIDE["sets"]}
    sets |= {f"{stage}-bsds500@quick-dncnn-25-0" for stage in ("train", "examine")}
    sets |= {f"{stage}-split@quick-cnn-bce-0" for stage in ("train", "examine")}
    images = {"download@quick", "corrupt@quick-gaussian-01"}
    assert clone.repro(*targets) == images | studied | sets | {"compare@quick"}
    scores = clone.folder / "scores/quick"
    names = ("base", "channels-d8", "size-autoencoder-3")
    assert {path.name for path in (scores / "studies").iterdir()} == {
        f"gaussian-01-{n}-0.json" for n in names
    }
    examined = json.loads((scores / "sets/bsds500-dncnn-25-0.json").read_text())
    assert {"psnr", "train_psnr", "noisy_psnr"} <= set(examined)
    panel = clone.folder / "panels/quick/sets/split-cnn-bce-0"
    assert (panel / "levels.csv").read_text().splitlines()[0] == "sigma,noisy_psnr,psnr,images"
    assert len(list(panel.glob("*.png"))) == 6

    raw = clone.params()
    raw["variations"]["channels-d8"]["d"] = 12
    raw["own"]["split"]["cnn-bce"]["slope"] = 0.1
    clone.write_params(raw)
    changed = {"study@quick-channels-d8-0", "compare@quick"}
    changed |= {f"{stage}-split@quick-cnn-bce-0" for stage in ("train", "examine")}
    assert clone.repro(*targets) == changed
    assert clone.repro(*targets) == set()
