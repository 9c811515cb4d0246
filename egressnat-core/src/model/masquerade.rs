use alloc::collections::BTreeMap;
use core::fmt;
use core::net::IpAddr;
use ipnet::IpNet;

/// A protocol with its number in the IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// ICMP for IPv6.
    pub const ICMPV6: Self = Self(58);
    /// SCTP.
    pub const SCTP: Self = Self(132);
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ICMP => f.write_str("icmp"),
            Self::TCP => f.write_str("tcp"),
            Self::UDP => f.write_str("udp"),
            Self::ICMPV6 => f.write_str("icmpv6"),
            Self::SCTP => f.write_str("sctp"),
            Self(number) => write!(f, "protocol {number}"),
        }
    }
}

/// Which packets of pods a masquerade rule is for.
///
/// The order of the fields is the order of precedence: the longest destination, then the longest source, then a rule for
/// one protocol before a rule for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MasqueradeMatch {
    /// Packets to this range.
    pub destination: IpNet,
    /// From this range; from every pod if `None`.
    pub source: Option<IpNet>,
    /// Of this protocol; of every protocol if `None`.
    pub protocol: Option<Protocol>,
}

impl MasqueradeMatch {
    /// Every packet of a pod to `destination`.
    pub fn to(destination: IpNet) -> Self {
        Self {
            destination: destination.trunc(),
            source: None,
            protocol: None,
        }
    }

    fn matches(&self, source: IpAddr, destination: IpAddr, protocol: Option<Protocol>) -> bool {
        self.destination.contains(&destination)
            && self.source.is_none_or(|range| range.contains(&source))
            && self.protocol.is_none_or(|own| Some(own) == protocol)
    }
}

impl fmt::Display for MasqueradeMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "to {}", self.destination)?;
        if let Some(source) = self.source {
            write!(f, " from {source}")?;
        }
        if let Some(protocol) = self.protocol {
            write!(f, " {protocol}")?;
        }
        Ok(())
    }
}

/// What a masquerade rule does to the source address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum MasqueradeAction {
    /// The packet keeps the pod's address: an entry of the non-masquerade list.
    Keep,
    /// It leaves with the node's address.
    Masquerade,
}

impl fmt::Display for MasqueradeAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MasqueradeAction::Keep => "keep",
            MasqueradeAction::Masquerade => "masquerade",
        })
    }
}

/// What happens to packets of pods that no egress policy decides: both the non-masquerade list and its exceptions.
///
/// A packet that no rule matches is masqueraded, unless it stays inside the cluster. An entry for `0.0.0.0/0` or `::/0`
/// is the default of its family: with [`MasqueradeAction::Keep`] masquerading is off.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MasqueradeRules {
    /// The rules. The most specific one that matches decides.
    pub rules: BTreeMap<MasqueradeMatch, MasqueradeAction>,
}

impl MasqueradeRules {
    /// The rule that decides about a packet, if any. A rule for one protocol matches no packet of unknown protocol.
    pub fn find(
        &self,
        source: IpAddr,
        destination: IpAddr,
        protocol: Option<Protocol>,
    ) -> Option<(&MasqueradeMatch, MasqueradeAction)> {
        self.rules
            .iter()
            .filter(|(rule, _)| rule.matches(source, destination, protocol))
            .max_by_key(|(rule, _)| {
                (
                    rule.destination.prefix_len(),
                    rule.source.map(|range| range.prefix_len()),
                    rule.protocol,
                )
            })
            .map(|(rule, action)| (rule, *action))
    }

    /// Whether nothing is said, so that everything is masqueraded.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}
