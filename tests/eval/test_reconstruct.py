"""eval/reconstruct.py: the report that it writes, its picture, and what it refuses."""

import json

import reconstruct
from command_runs import refused
from PIL import Image


def test_command_reports_on_an_autoencoder(photos, vae, tmp_path, capsys):
    report, grid = tmp_path / "report.json", tmp_path / "grid.png"
    images = ["--vae", str(vae), "--data", str(photos), "--image_size", "16", "--extractor", "pixels"]
    reconstruct.main([*images, "--output", str(report), "--grid", str(grid)])
    printed = capsys.readouterr().out
    content = json.loads(report.read_text())
    assert f"rFID {content['rfid']:.3f}, PSNR {content['psnr']:.2f} dB" in printed
    assert f"| 3 | {content['channels'][3]['mean']:.3f} |" in printed
    assert content["vae"]["name"] == str(vae)
    assert content["command"].startswith("python eval/reconstruct.py --vae")
    with Image.open(grid) as picture:
        assert picture.width > picture.height
    (tmp_path / "net.pt").write_bytes(b"")
    script = ["--extractor", f"torchscript:{tmp_path / 'net.pt'}"]
    assert "is TorchScript, a program that runs here" in refused(capsys, reconstruct.main, *images, *script)
    assert "exists" in refused(capsys, reconstruct.main, *images, "--output", report)
    assert "must be divisible by 2" in refused(capsys, reconstruct.main, *images, "--image_size", "15")
    assert "takes 3 channels" in refused(capsys, reconstruct.main, *images, "--data", "digits")
