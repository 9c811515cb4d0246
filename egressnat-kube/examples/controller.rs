//! The controller's loop in a program of one's own.
//!
//! ```text
//! cargo run -p egressnat-kube --example controller -- DIRECTORY
//! ```

use std::error::Error;

use egressnat_kube::{ControllerConfig, DirectoryStore, run_controller_until};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args().nth(1).ok_or("which directory?")?;
    // On a cluster: `ApiStore`, and an `Election` if there may be more than one.
    let store = DirectoryStore::open(directory)?;
    let stop = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    run_controller_until(store, ControllerConfig::default(), stop).await?;
    Ok(())
}
