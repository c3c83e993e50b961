//! SQL text to a statement. What a stranger controls has limits here: length,
//! nesting and the number of terms, so that no statement overflows a stack.

use std::collections::BTreeMap;

use datafusion::sql::parser::{CopyToSource, DFParserBuilder, ExplainStatement, Statement as DfStatement};
use datafusion::sql::sqlparser::ast::{self, ObjectName, Query};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer, Whitespace};
use shoal_proto::{QueryId, WorkerId};

use self::ours::parse_ours;
use crate::Error;

mod ours;

/// The longest statement.
const SQL_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How deep brackets may nest.
const NESTING_MAX: usize = 200;
/// How many operators one expression may have between two commas or brackets.
const TERMS_MAX: usize = 2000;

/// A statement, by what must be done for it.
#[derive(Clone, Debug)]
pub enum Statement {
    /// Gives rows: SELECT, VALUES, SHOW, DESCRIBE.
    Query(Box<DfStatement>),
    /// `EXPLAIN [ANALYZE] [VERBOSE]` of a query.
    Explain {
        /// Runs it and shows what it did.
        analyze: bool,
        /// Shows more.
        verbose: bool,
        /// The query.
        query: Box<DfStatement>,
    },
    /// `EXPLAIN AVAILABILITY` of a query, or of a table.
    Availability(Box<DfStatement>),
    /// INSERT INTO.
    Insert(Box<DfStatement>),
    /// CREATE TABLE, with or without AS SELECT.
    CreateTable(Box<ast::CreateTable>),
    /// CREATE EXTERNAL TABLE.
    CreateExternal(Box<datafusion::sql::parser::CreateExternalTable>),
    /// CREATE VIEW, with the text of its query.
    CreateView(Box<ast::CreateView>),
    /// CREATE SCHEMA.
    CreateSchema {
        /// Its name.
        name: ObjectName,
        /// Whether an existing one is left as it is.
        if_not_exists: bool,
    },
    /// DROP TABLE, VIEW or SCHEMA.
    Drop {
        /// Of what kind.
        kind: ast::ObjectType,
        /// Which.
        names: Vec<ObjectName>,
        /// Whether a missing one is no error.
        if_exists: bool,
        /// Whether what is inside goes too.
        cascade: bool,
    },
    /// COPY FROM or TO.
    Copy(Box<Copy>),
    /// SET and RESET.
    Set(Box<DfStatement>),
    /// KILL QUERY.
    Kill(QueryId),
    /// `ALTER TABLE ... SET (...)`.
    AlterTable {
        /// Which.
        name: ObjectName,
        /// Whether a missing one is no error.
        if_exists: bool,
        /// What is set.
        options: Vec<ast::SqlOption>,
    },
    /// `OPTIMIZE TABLE`.
    Optimize {
        /// Which.
        name: ObjectName,
    },
    /// `ALTER WORKER ... [CANCEL] DRAIN`.
    DrainWorker {
        /// Which.
        worker: WorkerId,
        /// Whether its shards leave it.
        is_draining: bool,
    },
    /// `ALTER CLUSTER REMOVE COORDINATOR ...`.
    RemoveCoordinator {
        /// Its number, or its URL.
        coordinator: String,
    },
    /// REBALANCE.
    Rebalance,
}

/// COPY, in either direction.
#[derive(Clone, Debug)]
pub struct Copy {
    /// What is copied out of, or into.
    pub source: CopySource,
    /// Which way.
    pub direction: CopyDirection,
    /// Path, pattern or URL.
    pub location: String,
    /// Options by lower-case name.
    pub options: BTreeMap<String, String>,
}

/// A table, or a query in brackets.
#[derive(Clone, Debug)]
pub enum CopySource {
    /// A table and, where they were given, its columns.
    Table(ObjectName, Vec<String>),
    /// A query.
    Query(Box<Query>),
}

/// Which way a COPY goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyDirection {
    /// Files into a table.
    From,
    /// Rows into files.
    To,
}

/// Reads one statement.
///
/// # Errors
/// `Invalid` with line and column, or naming the limit that it breaks;
/// `Unsupported` for statements that are SQL but not Shoal's.
pub fn parse(sql: &str) -> Result<Statement, Error> {
    if sql.len() > SQL_BYTES_MAX {
        return Err(Error::Invalid(format!(
            "the statement has {} bytes and a statement may have {SQL_BYTES_MAX}: load bulk data with COPY or bulk ingest",
            sql.len()
        )));
    }
    let dialect = GenericDialect {};
    let mut tokens = Tokenizer::new(&dialect, sql)
        .tokenize_with_location()
        .map_err(|error| Error::Invalid(format!("syntax error: {error}")))?;
    number_placeholders(&mut tokens);
    check_limits(&tokens)?;
    while tokens.last().is_some_and(|token| is_blank(&token.token) || token.token == Token::SemiColon) {
        tokens.pop();
    }
    if tokens.is_empty() {
        return Err(Error::Invalid("there is no statement: write one that ends with `;`".into()));
    }
    if let Some(statement) = parse_ours(&dialect, &tokens)? {
        return Ok(statement);
    }
    let of_availability = after_availability(&tokens);
    let is_availability = of_availability.is_some();
    let tokens = of_availability.unwrap_or(tokens);
    let mut parser = DFParserBuilder::new(tokens)
        .with_dialect(&dialect)
        .with_recursion_limit(NESTING_MAX * 2)
        .build()
        .map_err(syntax)?;
    let mut statements = parser.parse_statements().map_err(syntax)?;
    match (statements.pop_front(), statements.len()) {
        (Some(statement), 0) => match (classify(statement)?, is_availability) {
            (statement, false) => Ok(statement),
            (Statement::Query(query), true) => Ok(Statement::Availability(query)),
            (_, true) => {
                Err(Error::Invalid("EXPLAIN AVAILABILITY takes a query, or the name of a table".into()))
            }
        },
        (Some(_), more) => Err(Error::Invalid(format!("one statement at a time: {} were sent", more + 1))),
        (None, _) => Err(Error::Invalid("there is no statement".into())),
    }
}

fn syntax(error: datafusion::error::DataFusionError) -> Error {
    Error::Invalid(
        error
            .strip_backtrace()
            .replace("SQL error: ParserError(\"", "syntax error: ")
            .trim_end_matches("\")")
            .to_owned(),
    )
}

fn is_blank(token: &Token) -> bool {
    matches!(token, Token::Whitespace(_) | Token::EOF)
}

/// `?` becomes `$1`, `$2` and so on: clients write either.
fn number_placeholders(tokens: &mut [TokenWithSpan]) {
    let mut count = 0;
    for token in tokens {
        if matches!(&token.token, Token::Placeholder(name) if name == "?") || token.token == Token::Question {
            count += 1;
            token.token = Token::Placeholder(format!("${count}"));
        }
    }
}

/// Refuses what would need a deep stack to parse, plan or even to free.
fn check_limits(tokens: &[TokenWithSpan]) -> Result<(), Error> {
    let mut terms: Vec<usize> = vec![0];
    for token in tokens {
        match &token.token {
            Token::LParen | Token::LBracket | Token::LBrace => terms.push(0),
            Token::RParen | Token::RBracket | Token::RBrace if terms.len() > 1 => {
                terms.pop();
            }
            Token::Comma | Token::SemiColon => {
                if let Some(count) = terms.last_mut() {
                    *count = 0;
                }
            }
            Token::Word(word)
                if !matches!(
                    word.keyword,
                    Keyword::AND
                        | Keyword::OR
                        | Keyword::NOT
                        | Keyword::UNION
                        | Keyword::EXCEPT
                        | Keyword::INTERSECT
                        | Keyword::JOIN
                        | Keyword::WHEN
                        | Keyword::CASE
                        | Keyword::LIKE
                        | Keyword::IS
                ) => {}
            Token::Number(..)
            | Token::SingleQuotedString(_)
            | Token::Whitespace(_)
            | Token::Placeholder(_)
            | Token::Period
            | Token::EOF => {}
            _operator => {
                if let Some(count) = terms.last_mut() {
                    *count += 1;
                }
            }
        }
        if terms.len() > NESTING_MAX {
            return Err(Error::Invalid(format!(
                "brackets nest more than {NESTING_MAX} deep at {}: write the expression flatter",
                token.span.start
            )));
        }
        if terms.last().is_some_and(|count| *count > TERMS_MAX) {
            return Err(Error::Invalid(format!(
                "an expression has more than {TERMS_MAX} terms at {}: use IN (...), a VALUES list or a table",
                token.span.start
            )));
        }
    }
    Ok(())
}

/// The query of an EXPLAIN AVAILABILITY; the name of a table stands for all of
/// its rows.
fn after_availability(tokens: &[TokenWithSpan]) -> Option<Vec<TokenWithSpan>> {
    let mut words = tokens.iter().enumerate().filter(|(_, token)| !is_blank(&token.token));
    let mut next_is = |expected: &str| {
        let (index, token) = words.next()?;
        let Token::Word(word) = &token.token else { return None };
        word.value.eq_ignore_ascii_case(expected).then_some(index)
    };
    next_is("explain")?;
    let rest = &tokens[next_is("availability")? + 1..];
    let first = rest.iter().find(|token| !is_blank(&token.token))?;
    let is_name = match &first.token {
        Token::Word(word) => {
            !matches!(word.keyword, Keyword::SELECT | Keyword::WITH | Keyword::VALUES | Keyword::TABLE)
        }
        _ => false,
    };
    let mut query = Vec::with_capacity(rest.len() + 6);
    if is_name {
        for word in [Token::make_keyword("SELECT"), Token::Mul, Token::make_keyword("FROM")] {
            query.push(TokenWithSpan::wrap(word));
            query.push(TokenWithSpan::wrap(Token::Whitespace(Whitespace::Space)));
        }
    }
    query.extend_from_slice(rest);
    Some(query)
}

/// Unquoted names are lower case, as everywhere in DataFusion's SQL.
pub(crate) fn fold_identifier(ident: ast::Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value,
        None => ident.value.to_lowercase(),
    }
}

fn classify(statement: DfStatement) -> Result<Statement, Error> {
    use ast::Statement as S;
    let unsupported =
        |what: &str, instead: &str| Err(Error::Unsupported(format!("{what} is not supported: {instead}")));
    let inner = match statement {
        DfStatement::Statement(inner) => inner,
        DfStatement::CreateExternalTable(create) => return Ok(Statement::CreateExternal(Box::new(create))),
        DfStatement::Explain(ExplainStatement { options, statement }) => {
            return Ok(Statement::Explain {
                analyze: options.analyze,
                verbose: options.verbose,
                query: statement,
            });
        }
        DfStatement::Reset(_) => return Ok(Statement::Set(Box::new(statement))),
        DfStatement::CopyTo(copy) => {
            let source = match copy.source {
                CopyToSource::Relation(name) => CopySource::Table(name, Vec::new()),
                CopyToSource::Query(query) => CopySource::Query(query),
            };
            let mut options: BTreeMap<_, _> = copy
                .options
                .into_iter()
                .map(|(name, value)| (name.to_lowercase(), value.to_string()))
                .collect();
            if let Some(format) = copy.stored_as {
                options.insert("format".into(), format.to_lowercase());
            }
            let direction = CopyDirection::To;
            return Ok(Statement::Copy(Box::new(Copy { source, direction, location: copy.target, options })));
        }
    };
    match *inner {
        S::CreateTable(create) => Ok(Statement::CreateTable(Box::new(create))),
        S::CreateView(create) => Ok(Statement::CreateView(Box::new(create))),
        S::CreateSchema { schema_name, if_not_exists, .. } => match schema_name {
            ast::SchemaName::Simple(name) => Ok(Statement::CreateSchema { name, if_not_exists }),
            _ => unsupported("CREATE SCHEMA ... AUTHORIZATION", "write CREATE SCHEMA name"),
        },
        S::Drop { object_type, if_exists, names, cascade, .. } => match object_type {
            ast::ObjectType::Table | ast::ObjectType::View | ast::ObjectType::Schema => {
                Ok(Statement::Drop { kind: object_type, names, if_exists, cascade })
            }
            other => unsupported(&format!("DROP {other}"), "there are tables, views and schemas"),
        },
        S::Insert(insert) => {
            if insert.overwrite
                || insert.replace_into
                || insert.or.is_some()
                || insert.ignore
                || insert.on.is_some()
                || insert.returning.is_some()
            {
                return unsupported(
                    "INSERT with OVERWRITE, OR ..., IGNORE, ON CONFLICT or RETURNING",
                    "rows can be appended with INSERT INTO, or a table made anew with CREATE TABLE AS",
                );
            }
            Ok(Statement::Insert(Box::new(DfStatement::Statement(Box::new(S::Insert(insert))))))
        }
        statement @ S::Set(_) => Ok(Statement::Set(Box::new(DfStatement::Statement(Box::new(statement))))),
        S::Explain { analyze, verbose, statement, .. } => {
            Ok(Statement::Explain { analyze, verbose, query: Box::new(DfStatement::Statement(statement)) })
        }
        S::AlterTable(alter) => match <[_; 1]>::try_from(alter.operations) {
            Ok([ast::AlterTableOperation::SetOptionsParens { options }]) => {
                Ok(Statement::AlterTable { name: alter.name, if_exists: alter.if_exists, options })
            }
            _ => unsupported(
                "this ALTER TABLE",
                "ALTER TABLE t SET (replicas = 2) is; for other columns, make a new table with CREATE TABLE AS",
            ),
        },
        S::Update { .. } | S::Delete(_) | S::Merge { .. } | S::Truncate { .. } => unsupported(
            "changing or deleting rows in place",
            "write the rows that stay into a new table with CREATE TABLE AS",
        ),
        S::StartTransaction { .. } | S::Commit { .. } | S::Rollback { .. } => {
            unsupported("a transaction over several statements", "each statement is atomic by itself")
        }
        statement @ (S::Query(_)
        | S::ShowVariable { .. }
        | S::ShowVariables { .. }
        | S::ShowTables { .. }
        | S::ShowColumns { .. }
        | S::ShowFunctions { .. }
        | S::ShowCreate { .. }
        | S::ExplainTable { .. }) => {
            Ok(Statement::Query(Box::new(DfStatement::Statement(Box::new(statement)))))
        }
        other => {
            let text = other.to_string();
            let words: Vec<_> = text.split_whitespace().take(2).collect();
            unsupported(
                &words.join(" "),
                "SELECT, INSERT, COPY, EXPLAIN, SET and CREATE or DROP of tables, views and schemas are",
            )
        }
    }
}

#[cfg(test)]
mod tests;
