//! `shoal sql`: a prompt on a cluster, or statements run and done with.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::client::{Addresses, Client, ClientError};
use crate::render::{Expanded, Format};
use crate::repl::{self, Input, NoHook, OnError, Options};

/// Where a coordinator is when nobody says.
const ADDRESS_DEFAULT: &str = "shoal://127.0.0.1:7400";
/// How long what was cancelled may take to tidy up.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// What the end of the help shows.
pub const EXAMPLES: &str = "\
Examples:
  shoal sql                                              a prompt on this machine's coordinator
  shoal sql shoal://10.0.0.1:7400
  shoal sql shoal://10.0.0.1:7400,10.0.0.2:7400          the first that answers; another one when it is gone
  shoal sql -c 'SELECT count(*) FROM orders' --format csv
  shoal sql -f load.sql                                  statements in a file
  echo 'SELECT 1' | shoal sql --format json
  shoal sql -c \"\\copy orders from 'orders.parquet'\"

Exit status: 0 all went well, 1 a statement failed, 2 no connection, 3 wrong usage, 130 Ctrl-C.";

/// `shoal sql`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct SqlArgs {
    /// A coordinator, like shoal://127.0.0.1:7400, or several, like shoal://a:7400,b:7400: the first that answers
    #[arg(value_name = "URI", env = "SHOAL_URI", default_value = ADDRESS_DEFAULT)]
    pub uri: String,
    /// Run these statements, or a backslash command, and exit; repeatable
    #[arg(short = 'c', long = "command", value_name = "SQL")]
    pub commands: Vec<String>,
    /// Run the statements in this file and exit, after those of -c; repeatable; - is standard input
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// How results are written: table, csv, tsv, json, ndjson, vertical or markdown
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t, hide_possible_values = true)]
    pub format: Format,
    /// Write one line per value
    #[arg(short = 'x', long)]
    pub expanded: bool,
    /// How many rows of a result the screen shows, or all [default: 100]
    #[arg(long, value_name = "N", value_parser = parse_rows)]
    pub rows: Option<RowsShown>,
    /// Leave the columns' names out of CSV and TSV
    #[arg(long)]
    pub no_header: bool,
    /// What happens after an error in -c, -f or standard input: stop or continue
    #[arg(long, value_name = "WHAT", value_enum, default_value_t, hide_possible_values = true)]
    pub on_error: OnError,
    /// Who you are
    #[arg(
        short = 'U',
        long,
        value_name = "NAME",
        env = "USER",
        hide_env_values = true,
        default_value = "shoal"
    )]
    pub user: String,
    /// Say nothing beside results and errors
    #[arg(short = 'q', long)]
    pub quiet: bool,
    /// Say the SQLSTATE of errors
    #[arg(short = 'v', long)]
    pub verbose: bool,
}

/// What `--rows` says; none: all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowsShown(pub Option<usize>);

fn parse_rows(text: &str) -> Result<RowsShown, String> {
    match (text, text.parse::<usize>()) {
        ("all", _) => Ok(RowsShown(None)),
        (_, Ok(rows)) if rows > 0 => Ok(RowsShown(Some(rows))),
        _ => Err("give a number of rows, or all".to_owned()),
    }
}

/// Runs `shoal sql` on a runtime of its own.
pub fn main(args: SqlArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            print_error(&format!("cannot start: {error}"));
            return ExitCode::from(1);
        }
    };
    let code = runtime.block_on(run(args));
    // What was cancelled tidies up; a thread may wait for standard input.
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    code
}

/// Runs `shoal sql`: a prompt if standard input is a terminal and there is
/// nothing to run, else what there is to run.
pub async fn run(args: SqlArgs) -> ExitCode {
    match connect(&args).await {
        Ok(client) => {
            let mut options = options(&args);
            let inputs = inputs(&args);
            if inputs.is_empty() {
                options.greeting = Some(greeting(&client));
                repl::run(client, options, Arc::new(NoHook)).await
            } else {
                repl::run_script(client, options, Arc::new(NoHook), inputs).await
            }
        }
        Err(error) => {
            print_error(&error.to_string());
            ExitCode::from(error.exit_code())
        }
    }
}

async fn connect(args: &SqlArgs) -> Result<Client, ClientError> {
    for file in args.files.iter().filter(|file| file.as_os_str() != "-") {
        std::fs::File::open(file)
            .map_err(|error| ClientError::Usage(format!("cannot read {}: {error}", file.display())))?;
    }
    let addresses = Addresses::parse(&args.uri)?;
    let client = Client::connect(&addresses, &args.user).await.map_err(|error| match error {
        ClientError::Unreachable { address, cause } => ClientError::Unreachable {
            address,
            cause: format!(
                "{cause}\nIs a coordinator running there? `shoal demo` starts a whole cluster to try."
            ),
        },
        other => other,
    })?;
    client.learn_coordinators();
    Ok(client)
}

/// What there is to run; nothing means a prompt.
fn inputs(args: &SqlArgs) -> Vec<Input> {
    let mut inputs: Vec<Input> = args.commands.iter().cloned().map(Input::Text).collect();
    inputs.extend(args.files.iter().map(|file| match file.as_os_str() == "-" {
        true => Input::Stdin,
        false => Input::File(file.clone()),
    }));
    if inputs.is_empty() && !io::stdin().is_terminal() {
        inputs.push(Input::Stdin);
    }
    inputs
}

fn options(args: &SqlArgs) -> Options {
    let mut options = Options::from_terminal();
    options.format = args.format;
    if args.expanded {
        options.expanded = Expanded::On;
    }
    if let Some(RowsShown(rows)) = args.rows {
        options.rows_shown = rows;
    }
    options.header = !args.no_header;
    options.on_error = args.on_error;
    options.quiet = args.quiet;
    options.verbose = args.verbose;
    options
}

fn greeting(client: &Client) -> String {
    format!(
        "shoal {}, connected to {}\nStatements end with a semicolon. \\? lists the commands, \\q quits.\n",
        env!("CARGO_PKG_VERSION"),
        client.address()
    )
}

fn print_error(message: &str) {
    let paint = crate::render::Paint::for_stream(&io::stderr());
    let text = format!("{} {message}\n", paint.error("ERROR:"));
    // Without standard error there is nobody to tell.
    drop(io::Write::write_all(&mut io::stderr(), text.as_bytes()));
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Wrapped {
        #[command(flatten)]
        args: SqlArgs,
    }

    fn parsed(line: &[&str]) -> SqlArgs {
        Wrapped::try_parse_from([&["sql"], line].concat()).ok().unwrap().args
    }

    #[test]
    fn commands_come_before_files() {
        let args = parsed(&["-f", "a.sql", "-c", "select 1", "-f", "-", "-c", "\\d"]);
        let expected = [
            Input::Text("select 1".into()),
            Input::Text("\\d".into()),
            Input::File("a.sql".into()),
            Input::Stdin,
        ];
        assert_eq!(inputs(&args), expected);
    }

    #[test]
    fn rows_are_a_number_or_all() {
        assert_eq!(parsed(&["--rows", "all"]).rows, Some(RowsShown(None)));
        assert_eq!(parsed(&["--rows", "7"]).rows, Some(RowsShown(Some(7))));
        assert!(parse_rows("0").is_err());
    }

    #[tokio::test]
    async fn a_wrong_address_is_wrong_usage_and_a_silent_one_no_connection() {
        let args = parsed(&["ftp://x", "-c", "select 1"]);
        assert_eq!(connect(&args).await.unwrap_err().exit_code(), 3);
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let args = parsed(&[&format!("127.0.0.1:{port}"), "-c", "select 1"]);
        let error = connect(&args).await.unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("Connection refused"), "{error}");
    }
}
