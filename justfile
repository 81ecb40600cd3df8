# What can be done here
default:
    @just --list

# Everything that CI checks
check:
    .ci/run

# Tests; arguments choose among them, as in `just test wire`
test *arguments:
    tests/run {{arguments}}

# A package for Debian and Ubuntu, in target/debian; needs cargo-deb (cargo install cargo-deb --locked)
deb:
    cargo build --release --workspace --bins
    mkdir -p target/man
    target/release/accel-cli man target/man
    cargo deb --no-build --strip -p accel-node

# The book in docs/, in target/book; needs mdbook (cargo install mdbook --locked)
book:
    mdbook build docs

# Format everything
format:
    cargo fmt --all
