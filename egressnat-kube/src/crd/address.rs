//! Addresses and ranges as the schema describes them. In Rust they are `IpAddr` and `IpNet`.

use kube::core::Rule;
use schemars::JsonSchema;
use serde_json::Value;

use super::rule::{rule, validations};

/// An IPv4 or IPv6 address.
#[derive(JsonSchema)]
#[schemars(
    inline,
    transparent,
    extend("maxLength" = 45, "x-kubernetes-validations" = address_rules())
)]
#[expect(dead_code, reason = "a schema only")]
pub(super) struct AddressText(String);

/// An IPv4 or IPv6 range, address/length.
#[derive(JsonSchema)]
#[schemars(
    inline,
    transparent,
    extend("maxLength" = 49, "x-kubernetes-validations" = range_rules())
)]
#[expect(dead_code, reason = "a schema only")]
pub(super) struct RangeText(String);

fn address_rules() -> Value {
    validations([
        rule(
            "isIP(self)",
            "no IP address: write one such as 192.168.1.100",
        ),
        rule(
            "!isIP(self) || ip(self).isGlobalUnicast()",
            "no address to send from: write one of the subnet of the nodes",
        ),
    ])
}

fn range_rules() -> Value {
    validations([
        rule(
            "isCIDR(self)",
            "no CIDR: write address/length, such as 8.8.8.0/24",
        ),
        rule(
            "!isCIDR(self) || cidr(self) == cidr(self).masked()",
            "host bits set: write the first address of the range, such as 8.8.8.0/24",
        ),
    ])
}

/// No address twice, however it is written.
pub(super) fn distinct() -> Rule {
    rule(
        "self.all(a, !isIP(a) || self.exists_one(b, isIP(b) && ip(b) == ip(a)))",
        "an address stands in it twice: remove one of the two",
    )
}
