//! Taking everything of ours out of the kernel (E46).

mod flows;

use std::collections::BTreeMap;
use std::fs;
use std::io;

use egressnat_core::{Failure, Report};

use crate::config::Config;
use crate::dataplane::chain;
use crate::family::Family;
use crate::lock::Lock;
use crate::network::Network;
use crate::nft::{Fence, Owner, Ruleset};
use crate::programs::{remove_departures, remove_filters};
use flows::BoundFlows;

/// Removes everything of ours from this namespace, without an agent: programs, maps, ip rules, routes, tunnel
/// device, floating IPs, tables, the bindings of running connections, and the guard file if one is configured. Running it again changes nothing. While an agent runs it removes nothing, and names the agent's
/// process: the agent would bring everything back.
///
/// Steering ends first and the tables go last, so that no packet leaves half translated in between.
pub async fn cleanup(config: &Config) -> Report {
    let mut report = Report::default();
    let pins = config.pin_root();
    // For as long as this runs, no agent starts.
    let _lock = match Lock::take_existing(&pins).await {
        Ok(lock) => lock,
        Err(error) => return refused("the node", &error),
    };
    let owner = match Owner::open(config.table_ownership) {
        Ok(owner) => owner,
        Err(error) => return refused("the tables egressnat", &error),
    };
    if let Err(error) = owner.until_free().await {
        return refused("the tables egressnat", &error);
    }
    let mut note = |object: &str, outcome: Result<usize, String>| match outcome {
        Ok(changes) => report.changes += changes,
        Err(message) => report.failures.push(Failure {
            object: object.to_owned(),
            message,
        }),
    };
    let bound = BoundFlows::read(config);
    let network = Network::open(config);
    let interfaces = match &network {
        Ok(network) => network.interfaces().await.unwrap_or_default(),
        Err(_) => BTreeMap::new(),
    };
    note(
        "filters of interfaces",
        remove_filters(&pins, interfaces.into_keys())
            .map(|()| 0)
            .map_err(|error| chain(&error)),
    );
    note(
        "programs at postrouting",
        remove_departures(&pins)
            .map(|()| 0)
            .map_err(|error| chain(&error)),
    );
    note(
        &pins.display().to_string(),
        removed(fs::remove_dir_all(&pins)),
    );
    let removed_links = match network {
        Ok(network) => network.remove_all(config).await,
        Err(error) => Err(error),
    };
    note(
        "links, addresses, routes and rules",
        removed_links.map_err(|error| chain(&error)),
    );
    for family in Family::ALL {
        note(
            Ruleset::name(family),
            Ruleset::remove(&owner, family)
                .map(usize::from)
                .map_err(|error| chain(&error)),
        );
    }
    note(
        "table arp egressnat",
        Fence::remove(&owner)
            .map(usize::from)
            .map_err(|error| chain(&error)),
    );
    note(
        "running connections",
        bound.forget().map_err(|error| chain(&error)),
    );
    if let Some(file) = &config.guard_file {
        note(&file.display().to_string(), removed(fs::remove_file(file)));
    }
    report
}

/// How many things were removed: what was not there is none.
fn removed(outcome: io::Result<()>) -> Result<usize, String> {
    match outcome {
        Ok(()) => Ok(1),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error.to_string()),
    }
}

/// Nothing was removed, and why.
fn refused(object: &str, error: &dyn std::error::Error) -> Report {
    Report {
        failures: vec![Failure {
            object: object.to_owned(),
            message: chain(error),
        }],
        ..Report::default()
    }
}
