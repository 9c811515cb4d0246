//! What the node's packet path counted, for people and for programs.

use std::io::{self, Write};

use clap::ValueEnum;
use egressnat_dataplane::{CountedAt, Counters};
use serde_json::{Map, Value, json};

/// How counters are written.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Output {
    /// Tables.
    Text,
    /// One JSON object.
    Json,
}

/// Writes all counters.
pub(crate) fn write(out: &mut impl Write, counters: &Counters, output: Output) -> io::Result<()> {
    match output {
        Output::Text => write_text(out, counters),
        Output::Json => writeln!(out, "{:#}", json(counters)),
    }
}

fn write_text(out: &mut impl Write, counters: &Counters) -> io::Result<()> {
    let policies = counters.policies.iter().map(|(name, counted)| {
        let numbers = [
            counted.sent.packets,
            counted.sent.bytes,
            counted.connections,
            counted.blocked,
        ];
        (name.to_string(), numbers)
    });
    let columns = ["PACKETS", "BYTES", "CONNECTIONS", "BLOCKED"];
    write_table(out, "POLICY", columns, policies)?;
    writeln!(out)?;
    let egress = counters.egress.iter().map(|(address, counted)| {
        let numbers = [
            counted.steered.packets,
            counted.steered.bytes,
            counted.received.packets,
            counted.received.bytes,
            counted.connections,
        ];
        (address.to_string(), numbers)
    });
    let columns = [
        "STEERED PACKETS",
        "BYTES",
        "RECEIVED PACKETS",
        "BYTES",
        "CONNECTIONS",
    ];
    write_table(out, "EGRESS IP", columns, egress)?;
    writeln!(out)?;
    let kept = [(
        "kept".to_owned(),
        [counters.kept.packets, counters.kept.bytes],
    )];
    write_table(out, "POD ADDRESS", ["PACKETS", "BYTES"], kept.into_iter())?;
    writeln!(out)?;
    let blocked = counters.blocked.by_reason().into_iter();
    let blocked = blocked.map(|(reason, packets)| (reason.to_owned(), [packets]));
    write_table(out, "BLOCKED", ["PACKETS"], blocked)?;
    if counters.counted_at == CountedAt::Pod {
        writeln!(out, "\n{COUNTED_AT_POD}")?;
    }
    Ok(())
}

/// What to know of numbers that are not all of what left.
const COUNTED_AT_POD: &str = "What leaves from this node itself is counted at its pods, with what network policies drop: counting it where it leaves \
    takes Linux 6.4 and CAP_PERFMON.";

/// A name to the left and numbers to the right, each column as wide as it has to be.
fn write_table<const N: usize>(
    out: &mut impl Write,
    subject: &str,
    columns: [&str; N],
    rows: impl Iterator<Item = (String, [u64; N])>,
) -> io::Result<()> {
    let rows: Vec<(String, [String; N])> = rows
        .map(|(name, numbers)| (name, numbers.map(|number| number.to_string())))
        .collect();
    let header = (subject.to_owned(), columns.map(str::to_owned));
    let lines = || std::iter::once(&header).chain(&rows);
    let first = lines()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or_default();
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = lines().map(|(_, cells)| cells[column].len());
        cells.max().unwrap_or_default()
    });
    for (name, cells) in lines() {
        write!(out, "{name:first$}")?;
        for (cell, width) in cells.iter().zip(widths) {
            write!(out, "  {cell:>width$}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn json(counters: &Counters) -> Value {
    let policies: Map<String, Value> = counters
        .policies
        .iter()
        .map(|(name, counted)| {
            let counted = json!({
                "packets": counted.sent.packets,
                "bytes": counted.sent.bytes,
                "connections": counted.connections,
                "blockedPackets": counted.blocked,
            });
            (name.to_string(), counted)
        })
        .collect();
    let egress_ips: Map<String, Value> = counters
        .egress
        .iter()
        .map(|(address, counted)| {
            let counted = json!({
                "steeredPackets": counted.steered.packets,
                "steeredBytes": counted.steered.bytes,
                "receivedPackets": counted.received.packets,
                "receivedBytes": counted.received.bytes,
                "connections": counted.connections,
            });
            (address.to_string(), counted)
        })
        .collect();
    let blocked = counters.blocked.by_reason().into_iter();
    let blocked: Map<String, Value> = blocked
        .map(|(reason, packets)| (reason.to_owned(), packets.into()))
        .collect();
    json!({
        "policies": policies,
        "egressIPs": egress_ips,
        "kept": {"packets": counters.kept.packets, "bytes": counters.kept.bytes},
        "blocked": blocked,
        "countedAt": match counters.counted_at {
            CountedAt::Departure => "departure",
            CountedAt::Pod => "pod",
        },
    })
}

#[cfg(test)]
mod tests {
    use egressnat_dataplane::{EgressCounters, PolicyCounters, Traffic};

    use super::*;

    fn counters() -> Counters {
        let sent = Traffic {
            packets: 12,
            bytes: 3456,
        };
        let policy = PolicyCounters {
            sent,
            connections: 2,
            blocked: 1,
        };
        let egress = EgressCounters {
            steered: sent,
            ..EgressCounters::default()
        };
        let mut counters = Counters::default();
        counters.policies.insert("web".parse().unwrap(), policy);
        counters
            .egress
            .insert("192.168.1.100".parse().unwrap(), egress);
        counters.blocked.dropped = 1;
        counters
    }

    fn written(output: Output) -> String {
        written_of(&counters(), output)
    }

    fn written_of(counters: &Counters, output: Output) -> String {
        let mut out = Vec::new();
        write(&mut out, counters, output).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_has_a_line_for_each_policy_below_the_names_of_its_columns() {
        let text = written(Output::Text);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "POLICY  PACKETS  BYTES  CONNECTIONS  BLOCKED");
        assert_eq!(lines[1], "web          12   3456            2        1");
        assert!(text.contains("\n192.168.1.100"), "{text}");
        assert!(text.contains("\ndropped"), "{text}");
    }

    #[test]
    fn it_is_told_where_numbers_have_what_network_policies_drop() {
        let mut counters = counters();
        for (counted_at, is_told, word) in [
            (CountedAt::Departure, false, "departure"),
            (CountedAt::Pod, true, "pod"),
        ] {
            counters.counted_at = counted_at;
            let text = written_of(&counters, Output::Text);
            assert_eq!(text.ends_with("CAP_PERFMON.\n"), is_told, "{text}");
            let json: Value = serde_json::from_str(&written_of(&counters, Output::Json)).unwrap();
            assert_eq!(json["countedAt"], word);
        }
    }

    #[test]
    fn json_has_the_same_numbers() {
        let json: Value = serde_json::from_str(&written(Output::Json)).unwrap();
        let policy = &json["policies"]["web"];
        assert_eq!(
            *policy,
            json!({"packets": 12, "bytes": 3456, "connections": 2, "blockedPackets": 1})
        );
        assert_eq!(json["egressIPs"]["192.168.1.100"]["steeredPackets"], 12);
        assert_eq!(json["blocked"]["dropped"], 1);
        assert_eq!(json["blocked"].as_object().unwrap().len(), 10);
    }
}
