//! What a person reads before the first prompt.

use std::fmt::Write as _;

use super::cluster::{DemoCluster, NodeState};
use super::files::UserFile;
use super::kept::Kept;
use super::roles::Roles;
use crate::client::{Address, ClientError};

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
///
/// # Errors
/// Where there is no coordinator.
pub(super) fn text(
    cluster: &DemoCluster,
    demo: &Kept,
    files: &[UserFile],
    roles: &Roles,
) -> Result<String, ClientError> {
    let all = cluster.addresses()?;
    let first = all.iter().next().map_or("", Address::place);
    let mut text = format!(
        "\n\
         Connect    shoal sql {all}\n\
         Python     adbc_driver_flightsql.dbapi.connect(\"grpc://{first}\")\n\
         JDBC       jdbc:arrow-flight-sql://{first}?useEncryption=false\n\n"
    );
    let who = match demo.coordinators {
        1 => "One coordinator takes every statement".to_owned(),
        more => format!("Each of {more} coordinators takes every statement"),
    };
    text.push_str(&format!("{who}; {} workers hold the data and compute.\n\n", demo.workers));
    text.push_str(&nodes(&cluster.nodes(), roles));
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
    Ok(text)
}

/// How to take a node away; only where its absence is survived.
fn killing(cluster: &DemoCluster, demo: &Kept) -> String {
    let mut text = String::new();
    if demo.workers < 2 || demo.replicas < 2 {
        text.push_str("\nStart the demo with 2 or more --workers and --replicas to see it survive one.\n");
    } else {
        let victim = cluster.nodes().into_iter().find(|node| node.name == "worker-2");
        let pid =
            victim.and_then(|node| node.pid).map(|pid| format!("or, in another terminal: kill -9 {pid}"));
        text.push_str(&format!(
            "\nTake a worker away, and ask again\n  \
             \\kill worker-2     {}\n  \
             \\nodes             who is there\n  \
             \\start worker-2    and it is back\n  \
             \\drill             all of it by itself: kills, freezes and cuts off workers while queries run\n",
            pid.unwrap_or_default()
        ));
    }
    if demo.coordinators < 3 {
        text.push_str("\nStart the demo with 3 or more --coordinators to see it survive one of them.\n");
    } else {
        text.push_str(
            "\nTake a coordinator away, and ask again\n  \
             \\kill coordinator  this shell goes on at another one\n  \
             \\start coordinator and it is back\n",
        );
    }
    text
}

/// A table of the nodes.
pub(super) fn nodes(nodes: &[NodeState], roles: &Roles) -> String {
    let mut text = format!(
        "{:<14} {:>8}  {:<7}  {:<8}  {:<21}  {:<13}  {}\n",
        "Node", "Process", "State", "Role", "Address", "Link", "Log"
    );
    for node in nodes {
        let pid = node.pid.map(|pid| pid.to_string()).unwrap_or_default();
        let state = match node.pid {
            None => "gone",
            Some(_) if node.is_frozen => "frozen",
            Some(_) => "running",
        };
        let (name, role, address) = (&node.name, roles.of(node), node.reached_at.to_string());
        let link = node.cut.map_or_else(|| "whole".to_owned(), |cut| format!("cut, {cut}"));
        let log = node.log.display();
        // Writing to a string does not fail.
        let _ok =
            writeln!(text, "{name:<14} {pid:>8}  {state:<7}  {role:<8}  {address:<21}  {link:<13}  {log}");
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
