//! Which policies a plan was made with, in sixteen digits.
//!
//! An agent tells by it what it has planned with, instead of listing every policy of the cluster; who knows the same policies
//! comes to the same digest.

use core::fmt;
use core::hash::{BuildHasher, Hasher};
use core::net::IpAddr;
use core::str::FromStr;

use crate::hash::Seed;
use crate::model::{Enforcement, Policy};
use crate::policy::ResolvedPolicy;

/// What a policy comes to: everything about it that a node's plan depends on, its text by its generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyMeaning<'a> {
    /// `metadata.uid`: a policy that was deleted and written anew is another one.
    pub uid: &'a str,
    /// `metadata.generation`, which changes with every edit of the spec.
    pub generation: i64,
    /// What its references resolve to; none if it is not applied.
    pub resolved: Option<ResolvedPolicy>,
    /// Its enforcement, which is written in an annotation and has no generation.
    pub enforcement: Enforcement,
    /// Whether its egress IPs are all held: of a best-effort policy the plan depends on it.
    pub is_held: bool,
}

impl<'a> PolicyMeaning<'a> {
    /// What a policy comes to, where `resolved` is what its references resolve to, and `is_held` says whether some node holds an address.
    pub fn new(
        (uid, generation): (&'a str, i64),
        policy: &Policy,
        resolved: Option<ResolvedPolicy>,
        is_held: impl Fn(&IpAddr) -> bool,
    ) -> Self {
        let is_held = match resolved {
            Some(ResolvedPolicy::Snat(ips)) => ips.iter().all(|ip| is_held(&ip)),
            Some(ResolvedPolicy::Keep) | None => false,
        };
        Self {
            uid,
            generation,
            resolved,
            enforcement: policy.enforcement,
            is_held,
        }
    }
}

impl PolicyMeaning<'_> {
    /// A digest of this policy alone.
    pub fn digest(&self) -> Digest {
        let mut hasher = hasher();
        self.feed(&mut hasher);
        Digest(hasher.finish())
    }

    /// Every value at its full length, written as it will be in later releases too.
    fn feed(&self, hasher: &mut impl Hasher) {
        hasher.write(self.uid.as_bytes());
        hasher.write_u64(self.generation.cast_unsigned());
        match self.resolved {
            None => hasher.write_u8(0),
            Some(ResolvedPolicy::Keep) => hasher.write_u8(1),
            Some(ResolvedPolicy::Snat(ips)) => {
                hasher.write_u8(2);
                hasher.write(&ips.v4.map(|ip| ip.octets()).unwrap_or_default());
                hasher.write(&ips.v6.map(|ip| ip.octets()).unwrap_or_default());
                match self.enforcement {
                    Enforcement::Strict => hasher.write_u8(0),
                    Enforcement::BestEffort => hasher.write_u8(1 + u8::from(self.is_held)),
                }
            }
        }
    }
}

/// A digest of policies. Its text is 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(u64);

impl Digest {
    /// The digest of all policies, in the order of their names.
    pub fn of_all<'a>(policies: impl IntoIterator<Item = PolicyMeaning<'a>>) -> Self {
        let mut hasher = hasher();
        for policy in policies {
            policy.feed(&mut hasher);
        }
        Self(hasher.finish())
    }
}

/// A seed that all programs share: they have to come to the same digest. Nobody chooses what goes in, for the API server makes
/// the uids.
fn hasher() -> impl Hasher {
    Seed(0x6567_7265_7373_6e61).build_hasher()
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A text that is no digest: 16 hexadecimal digits are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidDigest;

impl fmt::Display for InvalidDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no digest: 16 hexadecimal digits are one")
    }
}

impl core::error::Error for InvalidDigest {}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let is_digest = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = is_digest.then(|| u64::from_str_radix(text, 16).ok());
        number.flatten().map(Self).ok_or(InvalidDigest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::EgressIps;
    use std::collections::BTreeSet;
    use std::net::IpAddr;

    fn meaning() -> PolicyMeaning<'static> {
        let address: IpAddr = "192.168.1.100".parse().unwrap();
        PolicyMeaning {
            uid: "8c5c0a3e-0000-4000-8000-000000000001",
            generation: 3,
            resolved: Some(ResolvedPolicy::Snat(EgressIps::from(address))),
            enforcement: Enforcement::Strict,
            is_held: true,
        }
    }

    #[test]
    fn everything_that_a_plan_depends_on_changes_the_digest() {
        let other: IpAddr = "192.168.1.101".parse().unwrap();
        let v6: IpAddr = "::c0a8:165".parse().unwrap();
        let best_effort = PolicyMeaning {
            enforcement: Enforcement::BestEffort,
            ..meaning()
        };
        let all = [
            meaning(),
            PolicyMeaning {
                uid: "other",
                ..meaning()
            },
            PolicyMeaning {
                generation: 4,
                ..meaning()
            },
            PolicyMeaning {
                resolved: None,
                ..meaning()
            },
            PolicyMeaning {
                resolved: Some(ResolvedPolicy::Keep),
                ..meaning()
            },
            PolicyMeaning {
                resolved: Some(ResolvedPolicy::Snat(other.into())),
                ..meaning()
            },
            PolicyMeaning {
                resolved: Some(ResolvedPolicy::Snat(v6.into())),
                ..meaning()
            },
            best_effort,
            PolicyMeaning {
                is_held: false,
                ..best_effort
            },
        ];
        let digests: BTreeSet<Digest> = all.iter().map(PolicyMeaning::digest).collect();
        assert_eq!(digests.len(), all.len());
        let sets: BTreeSet<Digest> = all
            .iter()
            .map(|one| Digest::of_all([meaning(), *one]))
            .collect();
        assert_eq!(sets.len(), all.len());
        assert!(
            !sets.contains(&Digest::of_all([meaning()])),
            "one more is another set"
        );
    }

    #[test]
    fn who_holds_the_egress_ip_of_a_strict_policy_is_no_matter_of_its_source_nodes() {
        let unheld = PolicyMeaning {
            is_held: false,
            ..meaning()
        };
        assert_eq!(unheld.digest(), meaning().digest());
    }

    /// Programs of different releases compare it.
    #[test]
    fn the_digest_is_the_same_in_every_release() {
        assert_eq!(Digest::of_all([meaning()]), meaning().digest());
        assert_eq!(meaning().digest().to_string(), "c9bc5572427ef560");
    }

    #[test]
    fn a_digest_is_read_as_it_is_written() {
        let digest = meaning().digest();
        assert_eq!(digest.to_string().parse(), Ok(digest));
        for text in [
            "",
            "12",
            "+123456789abcdef",
            "x123456789abcdef",
            "00123456789abcdef",
        ] {
            assert_eq!(text.parse::<Digest>(), Err(InvalidDigest), "{text:?}");
        }
    }
}
