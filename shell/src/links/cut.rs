//! Who is cut off, and which bytes that holds.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Which bytes of a node are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// All.
    Both,
    /// Those that it should receive.
    Inbound,
    /// Those that it sends.
    Outbound,
}

/// As the demo's shell has it: nothing, `in` or `out`.
impl FromStr for Direction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" => Ok(Self::Both),
            "in" => Ok(Self::Inbound),
            "out" => Ok(Self::Outbound),
            other => Err(format!("`{other}` is not a direction; write in, out, or nothing for both")),
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Both => "both ways",
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        })
    }
}

/// One of the two ways of a connection. A node without a name is none that
/// can be cut off.
#[derive(Clone, Debug)]
pub(super) struct Flow {
    pub(super) from: Option<Arc<str>>,
    pub(super) to: Option<Arc<str>>,
}

impl Flow {
    pub(super) fn reversed(&self) -> Self {
        Self { from: self.to.clone(), to: self.from.clone() }
    }
}

/// The nodes that are cut off right now.
#[derive(Clone, Debug, Default)]
pub(super) struct Cuts(BTreeMap<String, Direction>);

impl Cuts {
    pub(super) fn cut(&mut self, node: &str, direction: Direction) {
        self.0.insert(node.to_owned(), direction);
    }

    pub(super) fn heal(&mut self, node: &str) {
        self.0.remove(node);
    }

    pub(super) fn of(&self, node: &str) -> Option<Direction> {
        self.0.get(node).copied()
    }

    /// Whether bytes that flow so must wait.
    pub(super) fn hold(&self, flow: &Flow) -> bool {
        let of = |node: &Option<Arc<str>>| node.as_deref().and_then(|node| self.of(node));
        matches!(of(&flow.from), Some(Direction::Both | Direction::Outbound))
            || matches!(of(&flow.to), Some(Direction::Both | Direction::Inbound))
    }
}
