//! Switches of the kernel's network: what has to be on, and what we set ourselves.

use std::fs;
use std::path::Path;

use super::NetworkError;
use crate::family::Family;

/// Whether the kernel has a family at all, switched on or not.
pub(super) fn is_known(family: Family) -> bool {
    match family {
        Family::Ipv4 => true,
        Family::Ipv6 => Path::new("/proc/sys/net/ipv6").exists(),
    }
}

/// Whether this node speaks IPv6, and if not, what to do about it.
pub(crate) fn ipv6() -> Result<(), &'static str> {
    match fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6") {
        Ok(value) if value.trim() == "0" => Ok(()),
        Ok(_) => Err(
            "IPv6 is switched off on this node: run 'sysctl -w net.ipv6.conf.all.disable_ipv6=0'",
        ),
        Err(_) => Err("the kernel of this node has no IPv6: boot it without 'ipv6.disable=1'"),
    }
}

/// Whether the host forwards packets of a family at all, and if not, which switch is off.
pub(crate) fn forwarding(family: Family) -> Result<(), &'static str> {
    let name = match family {
        Family::Ipv4 => "net.ipv4.ip_forward",
        Family::Ipv6 => "net.ipv6.conf.all.forwarding",
    };
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    match fs::read_to_string(path) {
        Ok(value) if value.trim() == "1" => Ok(()),
        _ => Err(name),
    }
}

/// The number that a setting is, if it is there.
pub(super) fn read(path: &str) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Whether a switch has a value.
pub(super) fn is(path: &str, value: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|now| now.trim() == value)
}

/// Sets a switch. Returns whether it had another value.
pub(super) fn set(path: &str, value: &str) -> Result<bool, NetworkError> {
    if is(path, value) {
        return Ok(false);
    }
    fs::write(path, value).map_err(|source| NetworkError::Sysctl {
        setting: path.trim_start_matches("/proc/sys/").replace('/', "."),
        value: value.to_owned(),
        source,
    })?;
    Ok(true)
}
