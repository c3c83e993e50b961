//! What the demo's shell can do more than any other: take nodes away and bring
//! them back.

use std::io::{IsTerminal, stdin};
use std::process::ExitCode;
use std::sync::Arc;

use futures::future::BoxFuture;
use rustix::process::Signal;

use super::DemoArgs;
use super::cluster::{DemoCluster, NodeState};
use super::drill::drill;
use super::kept::Kept;
use super::roles::Roles;
use super::welcome;
use crate::client::{Client, ClientError};
use crate::links::Direction;
use crate::repl::{self, BackslashHook, Input, Options, Show};

/// Opens the prompt; without a terminal, runs what comes from standard input.
pub(super) async fn prompt(
    client: Client,
    cluster: &Arc<DemoCluster>,
    demo: &Kept,
    args: &DemoArgs,
) -> ExitCode {
    let hook = Arc::new(DemoCommands { cluster: Arc::clone(cluster), demo: demo.clone() });
    let options = Options { format: args.format, ..Options::from_terminal() };
    if stdin().is_terminal() {
        repl::run(client, options, hook).await
    } else {
        repl::run_script(client, options, hook, vec![Input::Stdin]).await
    }
}

/// Runs what `-c` says.
pub(super) async fn execute(
    client: Client,
    cluster: &Arc<DemoCluster>,
    demo: &Kept,
    args: &DemoArgs,
) -> ExitCode {
    let hook = Arc::new(DemoCommands { cluster: Arc::clone(cluster), demo: demo.clone() });
    let options = Options { format: args.format, ..Options::from_terminal() };
    let inputs = args.commands.iter().cloned().map(Input::Text).collect();
    repl::run_script(client, options, hook, inputs).await
}

struct DemoCommands {
    cluster: Arc<DemoCluster>,
    demo: Kept,
}

impl BackslashHook for DemoCommands {
    fn help(&self) -> Vec<(String, String)> {
        [
            ("\\nodes", "lists the nodes of the demo, with their roles and processes; \\workers does, too"),
            ("\\kill NODE", "ends a coordinator or a worker at once, as kill -9 does"),
            ("\\start NODE", "starts it again, with what it has on disk"),
            ("\\freeze NODE", "stops a node where it is (SIGSTOP): it lives and says nothing"),
            ("\\thaw NODE", "lets it go on (SIGCONT)"),
            ("\\cut NODE [in|out]", "cuts a node off: bytes to it, from it or both go nowhere"),
            ("\\heal NODE", "lets them flow again"),
            (
                "\\drill [QUERIES]",
                "runs queries while workers are taken away in turn; do the answers change?",
            ),
        ]
        .map(|(usage, meaning)| (usage.to_owned(), meaning.to_owned()))
        .to_vec()
    }

    fn arguments(&self, command: &str, typed: &[&str]) -> Vec<String> {
        match (command, typed) {
            ("kill" | "start" | "freeze" | "thaw" | "cut" | "heal", []) => {
                self.cluster.nodes().into_iter().map(|node| node.name).collect()
            }
            ("cut", [_]) => ["in", "out"].map(str::to_owned).to_vec(),
            _ => Vec::new(),
        }
    }

    fn run<'a>(
        &'a self,
        command: &'a str,
        argument: &'a str,
        show: Show<'a>,
    ) -> BoxFuture<'a, Option<Result<String, ClientError>>> {
        let argument = argument.trim_end_matches(';').trim();
        let act: fn(&DemoCluster, &str) -> anyhow::Result<String> = match command {
            "nodes" | "workers" => {
                return Box::pin(async move {
                    let roles = Roles::ask(&self.cluster).await;
                    Some(Ok(welcome::nodes(&self.cluster.nodes(), &roles)))
                });
            }
            "kill" => kill,
            "start" => start,
            "freeze" => freeze,
            "thaw" => thaw,
            "cut" => cut,
            "heal" => heal,
            "drill" => {
                return Box::pin(async move { Some(drill(&self.cluster, &self.demo, argument, show).await) });
            }
            _ => return Box::pin(std::future::ready(None)),
        };
        let (cluster, argument) = (Arc::clone(&self.cluster), argument.to_owned());
        Box::pin(async move {
            // Processes are waited for.
            let done = tokio::task::spawn_blocking(move || act(&cluster, &argument)).await;
            let outcome = done.map_err(anyhow::Error::from).and_then(|outcome| outcome);
            Some(outcome.map_err(|error| ClientError::Usage(format!("{error:#}"))))
        })
    }
}

fn kill(cluster: &DemoCluster, name: &str) -> anyhow::Result<String> {
    if name.is_empty() {
        anyhow::bail!("\\kill takes the name of a node, like \\kill worker-2");
    }
    let pid = cluster.kill(name)?;
    let what = format!("killed {name} (process {pid})");
    let nodes = cluster.nodes();
    let coordinators: Vec<&NodeState> = nodes.iter().filter(|node| node.is_coordinator).collect();
    if !coordinators.iter().any(|node| node.name == name) {
        return Ok(format!("{what}; \\start {name} brings it back"));
    }
    let (all, left) = (coordinators.len(), coordinators.iter().filter(|node| node.can_answer()).count());
    Ok(if 2 * left > all {
        format!("{what}; the others go on without it, and \\start {name} brings it back")
    } else {
        format!("{what}; {left} of {all} are too few: nothing is answered until \\start {name}")
    })
}

fn freeze(cluster: &DemoCluster, name: &str) -> anyhow::Result<String> {
    if name.is_empty() {
        anyhow::bail!("\\freeze takes the name of a node, like \\freeze worker-2");
    }
    let pid = cluster.signal(name, Signal::STOP)?;
    Ok(format!("froze {name} (process {pid}); \\thaw {name} lets it go on"))
}

fn thaw(cluster: &DemoCluster, name: &str) -> anyhow::Result<String> {
    if name.is_empty() {
        anyhow::bail!("\\thaw takes the name of a node, like \\thaw worker-2");
    }
    let pid = cluster.signal(name, Signal::CONT)?;
    Ok(format!("{name} (process {pid}) goes on"))
}

fn start(cluster: &DemoCluster, name: &str) -> anyhow::Result<String> {
    if name.is_empty() {
        anyhow::bail!("\\start takes the name of a node, like \\start worker-2");
    }
    let pid = cluster.restart(name)?;
    Ok(format!("started {name} (process {pid})"))
}

fn cut(cluster: &DemoCluster, argument: &str) -> anyhow::Result<String> {
    let (name, direction) = argument.split_once(char::is_whitespace).unwrap_or((argument, ""));
    if name.is_empty() {
        anyhow::bail!("\\cut takes the name of a node, like \\cut worker-2, or \\cut worker-2 in");
    }
    let direction: Direction = direction.trim().parse().map_err(anyhow::Error::msg)?;
    cluster.cut(name, direction)?;
    Ok(format!("cut {name} off, {direction}; \\heal {name} lets its bytes flow again"))
}

fn heal(cluster: &DemoCluster, name: &str) -> anyhow::Result<String> {
    if name.is_empty() {
        anyhow::bail!("\\heal takes the name of a node, like \\heal worker-2");
    }
    cluster.heal(name)?;
    Ok(format!("{name} is connected again"))
}
