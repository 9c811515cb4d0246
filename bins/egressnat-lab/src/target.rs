use std::fmt;
use std::str::FromStr;

/// A place in the lab to run commands in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A pod: `namespace/name`, or `name` in the namespace `default`.
    Pod(String, String),
    /// A node: `node/name`.
    Node(String),
    /// Where the servers are: `outside`.
    Outside,
    /// The router between the segment and the outside: `router`.
    Router,
}

impl FromStr for Target {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.split_once('/') {
            Some(("node", name)) => Target::Node(name.to_owned()),
            Some((namespace, name)) => Target::Pod(namespace.to_owned(), name.to_owned()),
            None if text == "outside" => Target::Outside,
            None if text == "router" => Target::Router,
            None => Target::Pod("default".to_owned(), text.to_owned()),
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Pod(namespace, name) => write!(f, "{namespace}/{name}"),
            Target::Node(name) => write!(f, "node/{name}"),
            Target::Outside => f.write_str("outside"),
            Target::Router => f.write_str("router"),
        }
    }
}
