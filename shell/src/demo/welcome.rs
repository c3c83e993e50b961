//! What a person reads before the first prompt.

use std::fmt::Write as _;

use super::cluster::{DemoCluster, NodeState};
use super::files::UserFile;
use super::kept::Kept;

/// What to try with TPC-H.
const TPCH_STATEMENTS: &str = "  \
  SELECT count(*), sum(l_extendedprice) FROM lineitem;
  SELECT n_name, sum(o_totalprice) FROM orders
    JOIN customer ON o_custkey = c_custkey JOIN nation ON c_nationkey = n_nationkey
    GROUP BY n_name ORDER BY 2 DESC LIMIT 5;
  SET shoal.task_bytes = 100000;    -- so that even so little data is read by several workers
  EXPLAIN SELECT count(*) FROM orders JOIN lineitem ON o_orderkey = l_orderkey;
";

/// The connection strings, the nodes, and what to try.
pub(super) fn text(cluster: &DemoCluster, demo: &Kept, files: &[UserFile]) -> String {
    let address = cluster.coordinator();
    let mut text = format!(
        "\n\
         Connect    shoal sql shoal://{address}\n\
         Python     adbc_driver_flightsql.dbapi.connect(\"grpc://{address}\")\n\
         JDBC       jdbc:arrow-flight-sql://{address}?useEncryption=false\n\n"
    );
    text.push_str(&nodes(&cluster.nodes()));
    text.push_str("\nTry\n");
    for file in files {
        line(&mut text, format_args!("SELECT * FROM {} LIMIT 10;", file.table()));
    }
    if demo.scale.is_some() {
        text.push_str(TPCH_STATEMENTS);
    }
    line(&mut text, format_args!("SELECT * FROM system.workers;"));
    text.push_str(&killing(cluster, demo));
    text.push_str("\n\\? lists the commands. \\q or Ctrl-D ends the demo and everything it started.\n");
    text
}

/// How to take a worker away; only where its absence is survived.
fn killing(cluster: &DemoCluster, demo: &Kept) -> String {
    if demo.workers < 2 || demo.replicas < 2 {
        return "\nStart the demo with 2 or more --workers and --replicas to see it survive one.\n"
            .to_owned();
    }
    let victim = cluster.nodes().into_iter().find(|node| node.name == "worker-2");
    let pid = victim.and_then(|node| node.pid).map(|pid| format!("or, in another terminal: kill -9 {pid}"));
    format!(
        "\nTake a worker away, and ask again\n  \
         \\kill worker-2     {}\n  \
         \\workers           who is there\n  \
         \\start worker-2    and it is back\n  \
         \\drill             all of it by itself: kills, freezes and cuts off workers while queries run\n",
        pid.unwrap_or_default()
    )
}

/// A table of the nodes.
pub(super) fn nodes(nodes: &[NodeState]) -> String {
    let mut text = format!(
        "{:<12} {:>8}  {:<7}  {:<21}  {:<13}  {}\n",
        "Node", "Process", "State", "Address", "Link", "Log"
    );
    for node in nodes {
        let pid = node.pid.map(|pid| pid.to_string()).unwrap_or_default();
        let state = match node.pid {
            None => "gone",
            Some(_) if node.is_frozen => "frozen",
            Some(_) => "running",
        };
        let address = node.address.map(|address| address.to_string()).unwrap_or_default();
        let link = node.cut.map_or_else(|| "whole".to_owned(), |cut| format!("cut, {cut}"));
        let log = node.log.display();
        // Writing to a string does not fail.
        let _ok = writeln!(text, "{:<12} {pid:>8}  {state:<7}  {address:<21}  {link:<13}  {log}", node.name);
    }
    text
}

/// A number with separators, for people.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn line(text: &mut String, statement: std::fmt::Arguments<'_>) {
    let _ok = writeln!(text, "  {statement}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, expected) in [(0, "0"), (999, "999"), (1000, "1,000"), (6_001_215, "6,001,215")] {
            assert_eq!(grouped(number), expected);
        }
    }
}
