# What can be done here
default:
    @just --list

# Everything that CI checks
check:
    .ci/run

# Tests; arguments choose among them, as in `just test wire`
test *arguments:
    tests/run {{arguments}}

# Format everything
format:
    cargo fmt --all
