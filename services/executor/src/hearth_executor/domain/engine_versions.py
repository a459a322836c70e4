"""What old engines and runtimes endanger, in words for the log and the status."""

import re

#: Releases from which known escapes are closed.
RUNC_FLOOR = (1, 2, 8)
ENGINE_FLOOR = (29, 7, 1)
#: The oldest engine whose API has everything the profile asks for (private cgroup namespaces, per-call errno in filters).
ENGINE_WORKS = (20, 10, 10)


def version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: `20.10.24+dfsg1` is (20, 10, 24). Empty when there are none."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", text.strip())
    return tuple(int(part) for part in match[1].split(".")) if match else ()


def warnings(*, engine: str, runc: str, oci_runtime: str = "runc") -> list[str]:
    """Empty when nothing is known against them. A distribution may have carried a fix back under an old number; the text
    says so, since a number cannot."""
    found = list[str]()
    numbers = version(engine)
    if numbers and numbers < ENGINE_WORKS:
        found.append(f"engine {engine} is older than {_dotted(ENGINE_WORKS)}, the oldest this profile is known to hold on")
    elif numbers and numbers < ENGINE_FLOOR:
        found.append(
            f"engine {engine} is older than {_dotted(ENGINE_FLOOR)}: its archive API (docker cp) has let containers reach the "
            "host as root; Hearth never uses it, so do not use it on function containers either"
        )
    if oci_runtime == "runc" and (numbers := version(runc)) and numbers < RUNC_FLOOR:
        found.append(
            f"runc {runc} is older than {_dotted(RUNC_FLOOR)}: mount races (CVE-2025-31133, 52565, 52881) and leaked descriptors "
            "(CVE-2024-21626, before 1.1.12) have let images of strangers escape; run only images built here, and "
            "take your distribution's security updates, which may have fixed it under the old number"
        )
    return found


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
