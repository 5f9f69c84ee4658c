//! A stage's text as statements.
//!
//! Queries and expressions are read by `sqlparser`. `CREATE TABLE` is read here, out of that parser's parts, as it has what no other dialect
//! has: `WATERMARK FOR`, generated columns that may stand before `PRIMARY KEY`, tables of options alone.

use datafusion::sql::sqlparser::ast::{self, DataType, Expr, Ident, ObjectName, Query, SetExpr, TableObject};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer, TokenizerError};

use super::dialect::StageDialect;
use super::error::{Position, StageError};

/// More text than this is no stage.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// More words than these are no statement. Planning a chain of operators takes the square of its length.
const STATEMENT_TOKENS_MAX: usize = 4_000;
/// How deep a query may nest.
const DEPTH_MAX: usize = 100;

/// One statement, and where it begins.
#[derive(Debug)]
pub(crate) struct Statement {
    pub position: Position,
    pub kind: StatementKind,
}

#[derive(Debug)]
pub(crate) enum StatementKind {
    CreateTable(Box<CreateTable>),
    /// `CREATE VIEW` and `CREATE TABLE … AS`.
    CreateView {
        name: String,
        columns: Vec<String>,
        query: Box<Query>,
    },
    Insert {
        table: String,
        table_position: Position,
        columns: Vec<String>,
        query: Box<Query>,
    },
    /// A query whose rows are for whoever runs the stage.
    Query(Box<Query>),
    Set {
        name: String,
        value: String,
    },
}

#[derive(Debug)]
pub(crate) struct CreateTable {
    pub name: String,
    pub temporary: bool,
    /// `None`: those of the query that is inserted.
    pub columns: Option<Vec<ColumnDef>>,
    pub watermark: Option<Watermark>,
    pub options: Vec<TableOption>,
}

#[derive(Debug)]
pub(crate) struct ColumnDef {
    pub name: String,
    pub position: Position,
    pub data_type: DataType,
    pub not_null: bool,
    pub primary_key: bool,
    pub generated: Option<Expr>,
}

#[derive(Debug)]
pub(crate) struct Watermark {
    pub column: String,
    pub position: Position,
    pub expression: Option<Expr>,
}

#[derive(Debug)]
pub(crate) struct TableOption {
    pub name: String,
    pub value: String,
    pub position: Position,
}

/// A name as SQL compares it: quoted as it is, else in lower case.
pub(crate) fn normal(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

pub(crate) fn position_of(location: Location) -> Position {
    Position { line: location.line, column: location.column }
}

/// Splits a text into statements.
pub(crate) fn parse(text: &str) -> Result<Vec<Statement>, StageError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(StageError::new(format!("the file has {} bytes, a stage at most {TEXT_BYTES_MAX}", text.len()))
            .help("split it into several stages"));
    }
    let tokens = Tokenizer::new(&StageDialect, text)
        .tokenize_with_location()
        .map_err(|TokenizerError { message, location }| StageError::new(message).at(position_of(location)))?;
    check_lengths(&tokens)?;
    let mut parser = Parser::new(&StageDialect).with_recursion_limit(DEPTH_MAX).with_tokens_with_locations(tokens);
    let mut statements = Vec::new();
    loop {
        while parser.consume_token(&Token::SemiColon) {}
        let first = parser.peek_token();
        if first.token == Token::EOF {
            break;
        }
        let position = position_of(first.span.start);
        let kind = statement(&mut parser, &first).map_err(|e| e.at(position))?;
        statements.push(Statement { position, kind });
        let next = parser.peek_token();
        if !matches!(next.token, Token::SemiColon | Token::EOF) {
            return Err(unexpected("a semicolon or the end of the file", &next));
        }
    }
    if statements.is_empty() {
        return Err(StageError::new("there is no statement").help("a stage has at least one INSERT INTO … SELECT"));
    }
    Ok(statements)
}

fn check_lengths(tokens: &[TokenWithSpan]) -> Result<(), StageError> {
    for statement in tokens.split(|token| token.token == Token::SemiColon) {
        let words = statement.iter().filter(|token| !matches!(token.token, Token::Whitespace(_)));
        if let Some(first) = words.clone().next().filter(|_| words.clone().count() > STATEMENT_TOKENS_MAX) {
            return Err(StageError::new(format!("the statement has {} words, one may have {STATEMENT_TOKENS_MAX}", words.count()))
                .at(position_of(first.span.start))
                .help("name its parts with CREATE VIEW; join with a lookup table in the place of a long list"));
        }
    }
    Ok(())
}

fn unexpected(expected: &str, found: &TokenWithSpan) -> StageError {
    let found_text = match &found.token {
        Token::EOF => "the end of the file".to_owned(),
        token => format!("`{token}`"),
    };
    StageError::new(format!("expected {expected}, found {found_text}")).at(position_of(found.span.start))
}

/// A parser's error; its place is at the end of its text.
fn wrong(error: ParserError) -> StageError {
    let text = match error {
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => text,
        ParserError::RecursionLimitExceeded => {
            return StageError::new(format!("the query nests more than {DEPTH_MAX} levels deep")).help("name its parts with CREATE VIEW");
        }
    };
    if let Some((message, place)) = text.rsplit_once(" at Line: ")
        && let Some((line, column)) = place.split_once(", Column: ")
        && let (Ok(line), Ok(column)) = (line.parse(), column.trim_end().parse())
    {
        let message = message.strip_prefix("Expected: ").map_or(message.to_owned(), |rest| format!("expected {rest}"));
        let message = message.strip_prefix("Expected ").map_or(message.clone(), |rest| format!("expected {rest}"));
        return StageError::new(message.replace(", found: ", ", found ")).at(Position { line, column });
    }
    StageError::new(text)
}

fn statement(parser: &mut Parser<'_>, first: &TokenWithSpan) -> Result<StatementKind, StageError> {
    let Token::Word(word) = &first.token else {
        if first.token == Token::LParen {
            return Ok(StatementKind::Query(parser.parse_query().map_err(wrong)?));
        }
        return Err(unexpected("a statement", first));
    };
    match word.keyword {
        Keyword::CREATE => create(parser),
        Keyword::INSERT => insert(parser),
        Keyword::SELECT | Keyword::WITH => Ok(StatementKind::Query(parser.parse_query().map_err(wrong)?)),
        Keyword::SET => set(parser),
        _ => Err(StageError::new(format!("`{}` does not begin a statement of a stage", word.value))
            .at(position_of(first.span.start))
            .help("a stage has CREATE TABLE, CREATE VIEW, INSERT INTO … SELECT, SELECT and SET")),
    }
}

fn create(parser: &mut Parser<'_>) -> Result<StatementKind, StageError> {
    parser.expect_keyword(Keyword::CREATE).map_err(wrong)?;
    if parser.parse_keywords(&[Keyword::OR, Keyword::REPLACE]) {
        return Err(StageError::new("OR REPLACE is not supported: a stage says each name once").help("leave it out"));
    }
    let temporary = parser.parse_keyword(Keyword::TEMPORARY) || parser.parse_keyword(Keyword::TEMP);
    let what = parser.next_token();
    match &what.token {
        Token::Word(w) if w.keyword == Keyword::TABLE => table(parser, temporary),
        Token::Word(w) if w.keyword == Keyword::VIEW && !temporary => {
            if_not_exists(parser)?;
            let name = table_name(parser)?;
            let columns = if parser.consume_token(&Token::LParen) { names(parser)? } else { Vec::new() };
            parser.expect_keyword(Keyword::AS).map_err(wrong)?;
            Ok(StatementKind::CreateView { name, columns, query: parser.parse_query().map_err(wrong)? })
        }
        _ => Err(unexpected("TABLE or VIEW", &what).help("a stage can create tables and views; functions are files in sql/udfs")),
    }
}

fn if_not_exists(parser: &mut Parser<'_>) -> Result<(), StageError> {
    let at = position_of(parser.peek_token().span.start);
    if parser.parse_keywords(&[Keyword::IF, Keyword::NOT, Keyword::EXISTS]) {
        return Err(StageError::new("IF NOT EXISTS is not supported: a stage says each name once").at(at).help("leave it out"));
    }
    Ok(())
}

fn names(parser: &mut Parser<'_>) -> Result<Vec<String>, StageError> {
    let mut names = Vec::new();
    loop {
        names.push(normal(&parser.parse_identifier().map_err(wrong)?));
        if !parser.consume_token(&Token::Comma) {
            parser.expect_token(&Token::RParen).map_err(wrong)?;
            return Ok(names);
        }
    }
}

fn table_name(parser: &mut Parser<'_>) -> Result<String, StageError> {
    let at = position_of(parser.peek_token().span.start);
    simple_name(&parser.parse_object_name(false).map_err(wrong)?).map_err(|e| e.at(at))
}

fn simple_name(name: &ObjectName) -> Result<String, StageError> {
    match name.0.as_slice() {
        [one] => one.as_ident().map(normal).ok_or_else(|| StageError::new(format!("`{name}` is no name"))),
        _ => Err(StageError::new(format!("`{name}` has more than one part")).help("names of tables have no schema before them")),
    }
}

fn table(parser: &mut Parser<'_>, temporary: bool) -> Result<StatementKind, StageError> {
    if_not_exists(parser)?;
    let name = table_name(parser)?;
    let mut created = CreateTable { name, temporary, columns: None, watermark: None, options: Vec::new() };
    if parser.parse_keyword(Keyword::AS) {
        return Ok(StatementKind::CreateView { name: created.name, columns: Vec::new(), query: parser.parse_query().map_err(wrong)? });
    }
    if parser.consume_token(&Token::LParen) {
        columns(parser, &mut created)?;
    }
    let next = parser.peek_token();
    if parser.parse_keyword(Keyword::PARTITIONED) {
        return Err(StageError::new("PARTITIONED BY is not supported").at(position_of(next.span.start)).help("leave it out"));
    }
    if parser.parse_keyword(Keyword::WITH) {
        created.options = options(parser)?;
    } else if created.columns.is_none() {
        return Err(unexpected("columns, WITH or AS", &next));
    }
    Ok(StatementKind::CreateTable(Box::new(created)))
}

fn columns(parser: &mut Parser<'_>, table: &mut CreateTable) -> Result<(), StageError> {
    let mut columns: Vec<ColumnDef> = Vec::new();
    while !parser.consume_token(&Token::RParen) {
        let [first, second] = parser.peek_tokens_with_location();
        let position = position_of(first.span.start);
        let is = |token: &TokenWithSpan, text: &str| matches!(&token.token, Token::Word(w) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(text));
        if is(&first, "watermark") && is(&second, "for") {
            parser.next_token();
            parser.next_token();
            if table.watermark.is_some() {
                return Err(StageError::new("a second WATERMARK").at(position).help("a table has one"));
            }
            let column = normal(&parser.parse_identifier().map_err(wrong)?);
            let expression = if parser.parse_keyword(Keyword::AS) { Some(parser.parse_expr().map_err(wrong)?) } else { None };
            table.watermark = Some(Watermark { column, position, expression });
        } else if is(&first, "primary") && is(&second, "key") {
            parser.next_token();
            parser.next_token();
            parser.expect_token(&Token::LParen).map_err(wrong)?;
            for name in names(parser)? {
                match columns.iter_mut().find(|c| c.name == name) {
                    Some(column) => column.primary_key = true,
                    None => return Err(StageError::new(format!("there is no column `{name}` before this")).at(position)),
                }
            }
        } else {
            let column = column(parser, position)?;
            if columns.iter().any(|c| c.name == column.name) {
                return Err(StageError::new(format!("a second column `{}`", column.name)).at(position));
            }
            columns.push(column);
        }
        if !parser.consume_token(&Token::Comma) {
            parser.expect_token(&Token::RParen).map_err(wrong)?;
            break;
        }
    }
    table.columns = Some(columns);
    Ok(())
}

fn column(parser: &mut Parser<'_>, position: Position) -> Result<ColumnDef, StageError> {
    let name = normal(&parser.parse_identifier().map_err(wrong)?);
    let data_type = parser.parse_data_type().map_err(wrong)?;
    let mut column = ColumnDef { name, position, data_type, not_null: false, primary_key: false, generated: None };
    loop {
        let next = parser.peek_token();
        if parser.parse_keywords(&[Keyword::NOT, Keyword::NULL]) {
            column.not_null = true;
        } else if parser.parse_keyword(Keyword::NULL) {
        } else if parser.parse_keywords(&[Keyword::PRIMARY, Keyword::KEY]) {
            column.primary_key = true;
        } else if parser.parse_keywords(&[Keyword::GENERATED, Keyword::ALWAYS, Keyword::AS]) {
            parser.expect_token(&Token::LParen).map_err(wrong)?;
            column.generated = Some(parser.parse_expr().map_err(wrong)?);
            parser.expect_token(&Token::RParen).map_err(wrong)?;
            let _ = parser.parse_keyword(Keyword::STORED) || parser.parse_keyword(Keyword::VIRTUAL);
        } else if matches!(&next.token, Token::Word(w) if w.value.eq_ignore_ascii_case("metadata")) {
            return Err(StageError::new("METADATA FROM is not supported")
                .at(position_of(next.span.start))
                .help("publish the value within the message and declare it as a column"));
        } else if matches!(next.token, Token::Comma | Token::RParen) {
            return Ok(column);
        } else {
            return Err(unexpected("NOT NULL, PRIMARY KEY, GENERATED ALWAYS AS, a comma or `)`", &next));
        }
    }
}

fn options(parser: &mut Parser<'_>) -> Result<Vec<TableOption>, StageError> {
    parser.expect_token(&Token::LParen).map_err(wrong)?;
    let mut options: Vec<TableOption> = Vec::new();
    while !parser.consume_token(&Token::RParen) {
        let first = parser.next_token();
        let position = position_of(first.span.start);
        let mut name = match &first.token {
            Token::Word(word) => word.value.clone(),
            Token::SingleQuotedString(text) => text.clone(),
            _ => return Err(unexpected("the name of an option", &first)),
        };
        while parser.consume_token(&Token::Period) {
            name = format!("{name}.{}", parser.parse_identifier().map_err(wrong)?.value);
        }
        parser.expect_token(&Token::Eq).map_err(wrong)?;
        let value = parser.next_token();
        let value = match &value.token {
            Token::SingleQuotedString(text) | Token::DoubleQuotedString(text) | Token::Number(text, _) => text.clone(),
            Token::Word(word) if matches!(word.keyword, Keyword::TRUE | Keyword::FALSE) => word.value.to_lowercase(),
            _ => return Err(unexpected("a text in single quotes, a number, true or false", &value)),
        };
        // Arroyo takes the last of two.
        options.retain(|option| option.name != name);
        options.push(TableOption { name, value, position });
        if !parser.consume_token(&Token::Comma) {
            parser.expect_token(&Token::RParen).map_err(wrong)?;
            break;
        }
    }
    Ok(options)
}

fn insert(parser: &mut Parser<'_>) -> Result<StatementKind, StageError> {
    let start = parser.peek_token();
    let [_, _, name] = parser.peek_tokens_with_location();
    let statement = parser.parse_statement().map_err(wrong)?;
    let ast::Statement::Insert(insert) = statement else {
        return Err(unexpected("INSERT INTO … SELECT", &start));
    };
    let TableObject::TableName(table) = &insert.table else {
        return Err(StageError::new("INSERT INTO takes the name of a table").at(position_of(name.span.start)));
    };
    let table_position = position_of(name.span.start);
    let table = simple_name(table).map_err(|e| e.at(table_position))?;
    let columns = insert.columns.iter().map(simple_name).collect::<Result<Vec<_>, _>>().map_err(|e| e.at(table_position))?;
    let extras = [
        (insert.on.is_some(), "ON CONFLICT"),
        (insert.returning.is_some(), "RETURNING"),
        (insert.overwrite, "OVERWRITE"),
        (insert.partitioned.is_some(), "PARTITION"),
    ];
    if let Some((_, what)) = extras.iter().find(|(is_there, _)| *is_there) {
        return Err(StageError::new(format!("{what} is not supported in an INSERT"))
            .at(position_of(start.span.start))
            .help("leave it out"));
    }
    let Some(query) = insert.source else {
        return Err(StageError::new("the INSERT has no query").at(position_of(start.span.start)).help("write INSERT INTO … SELECT …"));
    };
    if matches!(*query.body, SetExpr::Values(_)) {
        return Err(StageError::new("INSERT … VALUES is not supported: a stage's rows come from its sources")
            .at(position_of(start.span.start))
            .help("write INSERT INTO … SELECT … FROM a source"));
    }
    Ok(StatementKind::Insert { table, table_position, columns, query })
}

fn set(parser: &mut Parser<'_>) -> Result<StatementKind, StageError> {
    parser.expect_keyword(Keyword::SET).map_err(wrong)?;
    let name = normal(&parser.parse_identifier().map_err(wrong)?);
    if !parser.consume_token(&Token::Eq) && !parser.parse_keyword(Keyword::TO) {
        return Err(unexpected("`=`", &parser.peek_token()));
    }
    let value = parser.next_token();
    match &value.token {
        Token::SingleQuotedString(text) | Token::Number(text, _) => Ok(StatementKind::Set { name, value: text.clone() }),
        Token::Word(word) if word.keyword == Keyword::INTERVAL => {
            let text = parser.next_token();
            match &text.token {
                Token::SingleQuotedString(value) => {
                    let mut value = value.clone();
                    if let Token::Word(unit) = parser.peek_token().token {
                        parser.next_token();
                        value = format!("{value} {}", unit.value);
                    }
                    Ok(StatementKind::Set { name, value })
                }
                _ => Err(unexpected("a text in single quotes", &text)),
            }
        }
        _ => Err(unexpected("a text in single quotes or a number", &value)),
    }
}
