//! `moorline-pack`: what a release is made of beside the binaries.
//!
//! Everything it writes depends on its input alone: times are `--epoch`, owners are numbers, names are sorted. So two runs
//! give the same bytes.
#![forbid(unsafe_code)]

mod archive;
mod bundle;
mod image;
mod sbom;

use clap::Parser;

/// Makes container images, bills of materials and the air-gap bundle, without a container engine.
#[derive(Debug, Parser)]
#[command(name = "moorline-pack", version)]
enum Command {
    /// An OCI image archive, of one or more architectures, for `ctr images import`
    Image(image::Args),
    /// A CycloneDX bill of materials of what a binary is compiled from
    Sbom(sbom::Args),
    /// One archive with everything that a site without a network needs
    Bundle(bundle::Args),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Image(args) => image::run(&args),
        Command::Sbom(args) => sbom::run(&args),
        Command::Bundle(args) => bundle::run(&args),
    }
}
