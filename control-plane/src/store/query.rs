//! One query, written once, that runs on both engines: `$1` placeholders, and columns of BIGINT, TEXT and BYTEA.

use std::borrow::Cow;

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{ColumnIndex, Decode, Postgres, Row as _, SqlSafeStr, SqlStr, Sqlite, Type};

use super::transaction::Transaction;
use super::{Engine, Store, StoreError};

/// A value for a placeholder. What is absent has a type as well, because PostgreSQL asks for it.
#[derive(Debug, Clone)]
pub(crate) enum Argument<'q> {
    Integer(Option<i64>),
    Text(Option<Cow<'q, str>>),
    Bytes(Option<Cow<'q, [u8]>>),
}

#[cfg(test)]
impl Argument<'_> {
    fn into_owned(self) -> Argument<'static> {
        match self {
            Self::Integer(value) => Argument::Integer(value),
            Self::Text(value) => Argument::Text(value.map(|text| Cow::Owned(text.into_owned()))),
            Self::Bytes(value) => Argument::Bytes(value.map(|bytes| Cow::Owned(bytes.into_owned()))),
        }
    }
}

#[cfg(test)]
tokio::task_local! {
    static RECORDED: std::sync::Mutex<Vec<Query<'static>>>;
}

/// Every statement that `work` runs in its own task.
#[cfg(test)]
pub(crate) async fn recorded(work: impl Future<Output = ()>) -> Vec<Query<'static>> {
    RECORDED
        .scope(std::sync::Mutex::default(), async {
            work.await;
            RECORDED.with(|recorded| std::mem::take(&mut *recorded.lock().unwrap()))
        })
        .await
}

/// `$type => $variant($value)`, and the same for an optional one.
macro_rules! arguments {
    ($($type:ty => |$value:ident| $variant:ident($converted:expr)),+ $(,)?) => {$(
        impl<'q> From<$type> for Argument<'q> {
            fn from($value: $type) -> Self {
                Self::$variant(Some($converted))
            }
        }

        impl<'q> From<Option<$type>> for Argument<'q> {
            fn from(value: Option<$type>) -> Self {
                Self::$variant(value.map(|$value| $converted))
            }
        }
    )+};
}

arguments! {
    i64 => |value| Integer(value),
    u32 => |value| Integer(i64::from(value)),
    &'q str => |value| Text(Cow::Borrowed(value)),
    &'q String => |value| Text(Cow::Borrowed(value.as_str())),
    String => |value| Text(Cow::Owned(value)),
    &'q [u8] => |value| Bytes(Cow::Borrowed(value)),
    &'q [u8; 16] => |value| Bytes(Cow::Borrowed(&value[..])),
    &'q [u8; 32] => |value| Bytes(Cow::Borrowed(&value[..])),
    &'q Vec<u8> => |value| Bytes(Cow::Borrowed(value.as_slice())),
    Vec<u8> => |value| Bytes(Cow::Owned(value)),
}

impl<'q> From<&'q Option<String>> for Argument<'q> {
    fn from(value: &'q Option<String>) -> Self {
        value.as_deref().into()
    }
}

impl<'q> From<&'q Option<Vec<u8>>> for Argument<'q> {
    fn from(value: &'q Option<Vec<u8>>) -> Self {
        value.as_deref().into()
    }
}

/// A statement with its values.
#[derive(Debug, Clone)]
#[must_use = "a query does nothing before it is executed or fetched"]
pub(crate) struct Query<'q> {
    sql: SqlStr,
    arguments: Vec<Argument<'q>>,
    locks: bool,
}

/// A statement. Text that is put together at run time is wrapped in [`sqlx::AssertSqlSafe`], and never holds a value.
pub(crate) fn query<'q>(sql: impl SqlSafeStr) -> Query<'q> {
    Query { sql: sql.into_sql_str(), arguments: Vec::new(), locks: false }
}

/// `head VALUES ($1, $2), ($3, $4) .. tail`: one statement for all of `rows`. SQLite binds 32,766 values at most.
pub(crate) fn insert<'q, const COLUMNS: usize>(
    head: &str,
    rows: impl IntoIterator<Item = [Argument<'q>; COLUMNS]>,
    tail: &str,
) -> Query<'q> {
    let arguments: Vec<_> = rows.into_iter().flatten().collect();
    let rows: Vec<_> =
        (0..arguments.len()).step_by(COLUMNS.max(1)).map(|at| placeholders(at + 1, COLUMNS)).collect();
    let sql = format!("{head} VALUES {} {tail}", rows.join(", "));
    Query { sql: sqlx::AssertSqlSafe(sql).into_sql_str(), arguments, locks: false }
}

/// `($from, .. )`, `number` of them.
pub(crate) fn placeholders(from: usize, number: usize) -> String {
    let list: Vec<_> = (from..from + number).map(|at| format!("${at}")).collect();
    format!("({})", list.join(", "))
}

/// Where a query is read: any connection, or a transaction that has to see its own writes.
pub(crate) enum Reader<'e> {
    Store(&'e Store),
    Transaction(&'e mut Transaction),
}

impl<'e> From<&'e Store> for Reader<'e> {
    fn from(store: &'e Store) -> Self {
        Self::Store(store)
    }
}

impl<'e> From<&'e mut Transaction> for Reader<'e> {
    fn from(transaction: &'e mut Transaction) -> Self {
        Self::Transaction(transaction)
    }
}

impl<'q> Query<'q> {
    /// The value of the next placeholder.
    pub(crate) fn bind(mut self, value: impl Into<Argument<'q>>) -> Self {
        self.arguments.push(value.into());
        self
    }

    /// Locks the rows that are read until the transaction ends: `FOR UPDATE`. The embedded store's transactions hold its
    /// one write lock already.
    pub(crate) fn for_update(mut self) -> Self {
        self.locks = true;
        self
    }

    /// Runs it for its effect. Returns how many rows it touched.
    pub(crate) async fn execute(self, transaction: &mut Transaction) -> Result<u64, StoreError> {
        transaction.execute(self).await
    }

    /// Runs it for its effect as a transaction of its own, in one round trip, again where it met another one.
    pub(crate) async fn execute_alone(self, store: &Store) -> Result<u64, StoreError> {
        store.execute_alone(self).await
    }

    /// As [`Self::execute_alone`], for a statement with `RETURNING`.
    pub(crate) async fn fetch_alone(self, store: &Store) -> Result<Vec<Row>, StoreError> {
        store.fetch_alone(self).await
    }

    pub(crate) async fn fetch_all<'e>(self, from: impl Into<Reader<'e>>) -> Result<Vec<Row>, StoreError> {
        match from.into() {
            Reader::Transaction(transaction) => transaction.fetch_all(self).await,
            Reader::Store(store) => store.fetch_all(self).await,
        }
    }

    pub(crate) async fn fetch_optional<'e>(
        self,
        from: impl Into<Reader<'e>>,
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.fetch_all(from).await?.into_iter().next())
    }

    /// The first row; without one the store is not as it was migrated.
    pub(crate) async fn fetch_one<'e>(self, from: impl Into<Reader<'e>>) -> Result<Row, StoreError> {
        self.fetch_optional(from).await?.ok_or(StoreError::Unavailable(sqlx::Error::RowNotFound))
    }

    /// The same statement, explained instead of run.
    #[cfg(test)]
    pub(crate) fn explained(mut self, how: &str) -> Self {
        self.sql = sqlx::AssertSqlSafe(format!("{how} {}", self.sql.as_str())).into_sql_str();
        self
    }

    /// The text.
    #[cfg(test)]
    pub(crate) fn text(&self) -> &str {
        self.sql.as_str()
    }

    /// Is noted by [`recorded`].
    fn note(&self) {
        #[cfg(test)]
        let _ = RECORDED.try_with(|recorded| {
            let owned = self.arguments.iter().map(Argument::clone).map(Argument::into_owned).collect();
            let query = Query { sql: self.sql.clone(), arguments: owned, locks: self.locks };
            recorded.lock().unwrap().push(query);
        });
        #[cfg(not(test))]
        let _ = self;
    }

    pub(super) fn for_sqlite(self) -> sqlx::query::Query<'static, Sqlite, SqliteArguments> {
        self.note();
        let mut query = sqlx::query(self.sql);
        for argument in self.arguments {
            query = match argument {
                Argument::Integer(value) => query.bind(value),
                Argument::Text(value) => query.bind(value.map(Cow::into_owned)),
                Argument::Bytes(value) => query.bind(value.map(Cow::into_owned)),
            };
        }
        query
    }

    pub(super) fn for_postgres(self) -> sqlx::query::Query<'static, Postgres, PgArguments> {
        self.note();
        let sql = if self.locks {
            sqlx::AssertSqlSafe(format!("{} FOR UPDATE", self.sql.as_str())).into_sql_str()
        } else {
            self.sql
        };
        let mut query = sqlx::query(sql);
        for argument in self.arguments {
            query = match argument {
                Argument::Integer(value) => query.bind(value),
                Argument::Text(value) => query.bind(value.as_deref()),
                Argument::Bytes(value) => query.bind(value.as_deref()),
            };
        }
        query
    }
}

impl Store {
    async fn fetch_all(&self, query: Query<'_>) -> Result<Vec<Row>, StoreError> {
        let rows = match &self.0.engine {
            Engine::Sqlite(sqlite) => Row::sqlite(query.for_sqlite().fetch_all(&sqlite.readers).await?),
            Engine::Postgres(postgres) => postgres.fetch_all(query).await?,
        };
        Ok(rows)
    }
}

/// A row that was read.
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

/// What a column can be read as: `i64`, `String`, `Vec<u8>`, and `Option` of them.
pub(crate) trait Value:
    for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres>
{
}

impl<T> Value for T where
    T: for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres>
{
}

impl Row {
    /// The column of that name, or at that place, counted from 0.
    pub(crate) fn get<T: Value>(
        &self,
        column: impl ColumnIndex<SqliteRow> + ColumnIndex<PgRow>,
    ) -> Result<T, StoreError> {
        Ok(match self {
            Self::Sqlite(row) => row.try_get(column)?,
            Self::Postgres(row) => row.try_get(column)?,
        })
    }

    pub(super) fn sqlite(rows: Vec<SqliteRow>) -> Vec<Self> {
        rows.into_iter().map(Self::Sqlite).collect()
    }

    pub(super) fn postgres(rows: Vec<PgRow>) -> Vec<Self> {
        rows.into_iter().map(Self::Postgres).collect()
    }
}
