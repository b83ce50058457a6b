//! Values in and out of rows, by position: what is bound in one order is read in the same.
//!
//! SQLite's integers are signed. Ours are not, and go in bit by bit, so that none is refused: one above 2^63 looks
//! negative in a query, and none that people query comes near.

use rusqlite::types::FromSql;
use rusqlite::{Row, Statement, ToSql};

use super::codes::Coded;

/// An unsigned number as SQLite keeps it.
pub(super) const fn int(value: u64) -> i64 {
    value.cast_signed()
}

/// And back.
pub(super) const fn nat(value: i64) -> u64 {
    value.cast_unsigned()
}

/// Binds one parameter after the other.
pub(super) struct Binder<'s, 'c> {
    statement: &'s mut Statement<'c>,
    bound: usize,
}

impl<'s, 'c> Binder<'s, 'c> {
    pub(super) fn new(statement: &'s mut Statement<'c>) -> Self {
        Self { statement, bound: 0 }
    }

    pub(super) fn value(&mut self, value: impl ToSql) -> rusqlite::Result<()> {
        self.bound += 1;
        self.statement.raw_bind_parameter(self.bound, value)
    }

    pub(super) fn int(&mut self, value: u64) -> rusqlite::Result<()> {
        self.value(int(value))
    }

    pub(super) fn int_or_null(&mut self, value: Option<u64>) -> rusqlite::Result<()> {
        self.value(value.map(int))
    }

    pub(super) fn code<T: Coded>(&mut self, value: T) -> rusqlite::Result<()> {
        self.value(value.code())
    }

    pub(super) fn code_or_null<T: Coded>(&mut self, value: Option<T>) -> rusqlite::Result<()> {
        self.value(value.map(T::code))
    }

    /// The same nothing several times: the columns of a part that a record does not have.
    pub(super) fn nulls(&mut self, count: usize) -> rusqlite::Result<()> {
        (0..count).try_for_each(|_| self.value(rusqlite::types::Null))
    }

    /// Runs the statement with what was bound.
    pub(super) fn run(self) -> rusqlite::Result<usize> {
        self.statement.raw_execute()
    }
}

/// Reads one column after the other.
pub(super) struct Columns<'r, 's> {
    row: &'r Row<'s>,
    next: usize,
}

/// Why a row is no value: SQLite said so, or its content did.
#[derive(Debug)]
pub(super) enum RowError {
    Sqlite(rusqlite::Error),
    Corrupt(String),
}

/// A value of a wrong type is a fault of the file's content, not of the call.
impl From<rusqlite::Error> for RowError {
    fn from(error: rusqlite::Error) -> Self {
        match error {
            rusqlite::Error::InvalidColumnType(_, column, kind) => {
                Self::Corrupt(format!("column {column} holds a value of type {kind}"))
            }
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::Utf8Error(..) => Self::Corrupt(error.to_string()),
            error => Self::Sqlite(error),
        }
    }
}

impl RowError {
    pub(super) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt(what.into())
    }
}

impl<'r, 's> Columns<'r, 's> {
    pub(super) fn new(row: &'r Row<'s>) -> Self {
        Self { row, next: 0 }
    }

    pub(super) fn value<T: FromSql>(&mut self) -> rusqlite::Result<T> {
        self.next += 1;
        self.row.get(self.next - 1)
    }

    pub(super) fn int(&mut self) -> rusqlite::Result<u64> {
        self.value().map(nat)
    }

    pub(super) fn int_or_null(&mut self) -> rusqlite::Result<Option<u64>> {
        Ok(self.value::<Option<i64>>()?.map(nat))
    }

    pub(super) fn text_or_null(&mut self) -> rusqlite::Result<Option<Box<str>>> {
        self.value()
    }

    pub(super) fn code<T: Coded>(&mut self) -> Result<T, RowError> {
        self.code_or_null()?.ok_or_else(|| RowError::corrupt(format!("column {} is empty", self.last())))
    }

    pub(super) fn code_or_null<T: Coded>(&mut self) -> Result<Option<T>, RowError> {
        let Some(code) = self.value::<Option<i64>>()? else { return Ok(None) };
        let value = T::from_code(code);
        value.map(Some).ok_or_else(|| RowError::corrupt(format!("column {} has the unknown code {code}", self.last())))
    }

    pub(super) fn skip(&mut self, count: usize) {
        self.next += count;
    }

    /// The name of the column that was read last.
    fn last(&self) -> &str {
        self.row.as_ref().column_name(self.next - 1).unwrap_or("?")
    }
}
