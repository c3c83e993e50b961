//! Statements that no other parser knows: KILL, COPY, OPTIMIZE, REBALANCE, ALTER WORKER and ALTER CLUSTER.

use std::collections::BTreeMap;

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};
use shoal_proto::WorkerId;

use super::{Copy, CopyDirection, CopySource, Statement, fold_identifier};
use crate::Error;
use crate::catalog::CoordinatorId;

/// The statement, where it is one of them.
pub(super) fn parse_ours(
    dialect: &GenericDialect,
    tokens: &[TokenWithSpan],
) -> Result<Option<Statement>, Error> {
    let mut words = tokens.iter().filter_map(|token| match &token.token {
        Token::Word(word) => Some(word.value.to_ascii_uppercase()),
        _ => None,
    });
    let (first, second) = (words.next(), words.next());
    let mut parser = Parser::new(dialect).with_tokens_with_locations(tokens.to_vec());
    let parsed = match (first.as_deref(), second.as_deref()) {
        (Some("KILL"), _) => parse_kill(&mut parser),
        (Some("COPY"), _) => parse_copy(&mut parser),
        (Some("REBALANCE"), _) => {
            parser.next_token();
            Ok(Statement::Rebalance)
        }
        (Some("OPTIMIZE"), _) => parse_optimize(&mut parser),
        (Some("ALTER"), Some("WORKER")) => parse_alter_worker(&mut parser),
        (Some("ALTER"), Some("CLUSTER")) => parse_alter_cluster(&mut parser),
        _ => return Ok(None),
    };
    let statement = parsed.map_err(|error| Error::Invalid(parser_message(&error)))?;
    let after = parser.peek_token();
    if after.token != Token::EOF {
        return Err(Error::Invalid(format!(
            "syntax error: nothing expected after the statement, found {after}"
        )));
    }
    Ok(Some(statement))
}

fn parser_message(error: &ParserError) -> String {
    match error {
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => {
            format!("syntax error: {message}")
        }
        ParserError::RecursionLimitExceeded => "the statement nests too deep: write it flatter".into(),
    }
}

fn parse_kill(parser: &mut Parser) -> Result<Statement, ParserError> {
    parser.next_token();
    let word = parser.next_token();
    if !matches!(&word.token, Token::Word(word) if word.value.eq_ignore_ascii_case("query")) {
        return Err(ParserError::ParserError("expected KILL QUERY 'id'".into()));
    }
    let id = parser.parse_literal_string()?;
    let query = id.parse().map_err(|_| {
        ParserError::ParserError(format!(
            "`{id}` is not a query id: SELECT id FROM system.queries shows them"
        ))
    })?;
    Ok(Statement::Kill(query))
}

fn parse_optimize(parser: &mut Parser) -> Result<Statement, ParserError> {
    parser.next_token();
    if !take_word(parser, "table") {
        return Err(ParserError::ParserError("expected OPTIMIZE TABLE name".into()));
    }
    Ok(Statement::Optimize { name: parser.parse_object_name(false)? })
}

fn parse_alter_worker(parser: &mut Parser) -> Result<Statement, ParserError> {
    parser.next_token();
    parser.next_token();
    let expected = || ParserError::ParserError("expected ALTER WORKER 'name' [CANCEL] DRAIN".into());
    let worker = match parser.next_token().token {
        Token::Word(word) => word.value,
        Token::SingleQuotedString(name) => name,
        _ => return Err(expected()),
    };
    let is_draining = !take_word(parser, "cancel");
    if !take_word(parser, "drain") {
        return Err(expected());
    }
    Ok(Statement::DrainWorker { worker: WorkerId::new(worker), is_draining })
}

fn parse_alter_cluster(parser: &mut Parser) -> Result<Statement, ParserError> {
    parser.next_token();
    parser.next_token();
    if take_word(parser, "add") && take_word(parser, "coordinator") {
        return Err(ParserError::ParserError(
            "no statement adds a coordinator: run shoal coordinator --join URL on the new machine, with the URL of \
             one that is there"
                .into(),
        ));
    }
    let expected = || {
        ParserError::ParserError(
            "expected ALTER CLUSTER REMOVE COORDINATOR with a number or a 'URL': SELECT coordinator, address FROM \
             system.coordinators shows them"
                .into(),
        )
    };
    if !take_word(parser, "remove") || !take_word(parser, "coordinator") {
        return Err(expected());
    }
    let coordinator = match parser.next_token().token {
        Token::Number(number, false) => {
            let number: CoordinatorId = number.parse().map_err(|_| expected())?;
            number.to_string()
        }
        Token::SingleQuotedString(url) => url,
        _ => return Err(expected()),
    };
    Ok(Statement::RemoveCoordinator { coordinator })
}

/// Takes the next word where it is this one; whether it was.
fn take_word(parser: &mut Parser, wanted: &str) -> bool {
    let is_it =
        matches!(&parser.peek_token().token, Token::Word(word) if word.value.eq_ignore_ascii_case(wanted));
    if is_it {
        parser.next_token();
    }
    is_it
}

fn parse_copy(parser: &mut Parser) -> Result<Statement, ParserError> {
    parser.next_token();
    let source = if parser.consume_token(&Token::LParen) {
        let query = parser.parse_query()?;
        parser.expect_token(&Token::RParen)?;
        CopySource::Query(query)
    } else {
        let name = parser.parse_object_name(false)?;
        let columns = if parser.consume_token(&Token::LParen) {
            let columns = parser.parse_comma_separated(Parser::parse_identifier)?;
            parser.expect_token(&Token::RParen)?;
            columns
        } else {
            Vec::new()
        };
        CopySource::Table(name, columns.into_iter().map(fold_identifier).collect())
    };
    let direction = if parser.parse_keyword(Keyword::FROM) {
        CopyDirection::From
    } else if parser.parse_keyword(Keyword::TO) {
        CopyDirection::To
    } else {
        return parser.expected("FROM or TO", parser.peek_token());
    };
    if direction == CopyDirection::From && matches!(source, CopySource::Query(_)) {
        return Err(ParserError::ParserError("COPY FROM needs a table, not a query".into()));
    }
    let location = parser.parse_literal_string()?;
    let mut options = BTreeMap::new();
    if parser.parse_keywords(&[Keyword::STORED, Keyword::AS]) {
        options.insert("format".to_owned(), parser.parse_identifier()?.value.to_lowercase());
    }
    let _optional = parser.parse_keyword(Keyword::WITH) || parser.parse_keyword(Keyword::OPTIONS);
    if parser.consume_token(&Token::LParen) {
        loop {
            let (name, value) = parse_option(parser)?;
            if options.insert(name.clone(), value).is_some() {
                return Err(ParserError::ParserError(format!("option {name} is given twice")));
            }
            if !parser.consume_token(&Token::Comma) {
                break;
            }
        }
        parser.expect_token(&Token::RParen)?;
    }
    Ok(Statement::Copy(Box::new(Copy { source, direction, location, options })))
}

/// `NAME`, `NAME value` or `'name' 'value'`; a name alone is true.
fn parse_option(parser: &mut Parser) -> Result<(String, String), ParserError> {
    let name = match parser.next_token().token {
        Token::Word(word) => word.value,
        Token::SingleQuotedString(name) => name,
        other => return Err(ParserError::ParserError(format!("expected an option, found {other}"))),
    };
    let _optional = parser.consume_token(&Token::Eq);
    let value = match &parser.peek_token().token {
        Token::Comma | Token::RParen => return Ok((name.to_lowercase(), "true".into())),
        Token::Word(word) => word.value.clone(),
        Token::SingleQuotedString(value) | Token::EscapedStringLiteral(value) => value.clone(),
        Token::Number(value, _) => value.clone(),
        other => {
            return Err(ParserError::ParserError(format!(
                "expected a value for option {name}, found {other}"
            )));
        }
    };
    parser.next_token();
    Ok((name.to_lowercase(), value))
}
