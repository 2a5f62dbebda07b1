"""DVC stage `corrupt`: one noise, added to a profile's clean images."""

from pathlib import Path

import door

from lambdanet import corruption


def main() -> None:
    profile, noise, clean, out = door.arguments("PROFILE NOISE CLEAN OUT")
    params = door.load_params()
    config = params.noise(noise)
    door.announce(f"corrupt@{profile}-{noise}", params, profile)
    corruption.prepare_noisy(Path(clean), config, params.noise_seed, Path(out))


if __name__ == "__main__":
    with door.errors_in_one_line():
        main()
