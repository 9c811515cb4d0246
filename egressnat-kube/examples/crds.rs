//! Writes the CustomResourceDefinitions to a directory: `cargo run -p egressnat-kube --features crd --example crds -- deploy/crds`.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args_os().nth(1);
    let directory = PathBuf::from(directory.ok_or("name the directory to write to")?);
    std::fs::create_dir_all(&directory)?;
    for (name, text) in egressnat_kube::crd::files()? {
        std::fs::write(directory.join(name), text)?;
    }
    Ok(())
}
