//! What can go wrong with a server, and whether trying again can help.

use clickhouse::error::Error;

use crate::SinkError;

/// The server's error codes after which the same statement may succeed later. All others are about the statement, the schema or the
/// user. Names as in `system.errors`.
const TRANSIENT: &[u32] = &[
    24,   // CANNOT_WRITE_TO_OSTREAM
    32,   // ATTEMPT_TO_READ_AFTER_EOF: the request was cut off
    33,   // CANNOT_READ_ALL_DATA
    74,   // CANNOT_READ_FROM_FILE_DESCRIPTOR
    75,   // CANNOT_WRITE_TO_FILE_DESCRIPTOR: no space, mostly
    76,   // CANNOT_OPEN_FILE: too many open files
    86,   // RECEIVED_ERROR_FROM_REMOTE_IO_SERVER
    95,   // CANNOT_READ_FROM_SOCKET
    96,   // CANNOT_WRITE_TO_SOCKET
    159,  // TIMEOUT_EXCEEDED
    160,  // TOO_SLOW
    173,  // CANNOT_ALLOCATE_MEMORY
    198,  // DNS_ERROR
    201,  // QUOTA_EXCEEDED
    202,  // TOO_MANY_SIMULTANEOUS_QUERIES
    203,  // NO_FREE_CONNECTION
    204,  // CANNOT_FSYNC
    209,  // SOCKET_TIMEOUT
    210,  // NETWORK_ERROR
    218,  // TABLE_IS_DROPPED: while it is made again
    225,  // NO_ZOOKEEPER
    236,  // ABORTED: the server is going down
    241,  // MEMORY_LIMIT_EXCEEDED
    242,  // TABLE_IS_READ_ONLY: the replica has lost Keeper
    243,  // NOT_ENOUGH_SPACE
    244,  // UNEXPECTED_ZOOKEEPER_ERROR
    252,  // TOO_MANY_PARTS
    254,  // NO_ACTIVE_REPLICAS
    265,  // NO_AVAILABLE_REPLICA
    279,  // ALL_CONNECTION_TRIES_FAILED
    285,  // TOO_FEW_LIVE_REPLICAS
    286,  // UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE
    294,  // CANNOT_WRITE_TO_FILE
    319,  // UNKNOWN_STATUS_OF_INSERT
    341,  // UNFINISHED: DDL over replicas
    364,  // RECEIVED_ERROR_TOO_MANY_REQUESTS
    384,  // PART_IS_TEMPORARILY_LOCKED
    394,  // QUERY_WAS_CANCELLED
    410,  // EXTERNAL_SERVER_IS_NOT_RESPONDING
    416,  // REPLICA_STATUS_CHANGED
    425,  // SYSTEM_ERROR
    439,  // CANNOT_SCHEDULE_TASK
    473,  // DEADLOCK_AVOIDED
    499,  // S3_ERROR
    500,  // AZURE_BLOB_STORAGE_ERROR
    568,  // RAFT_ERROR
    574,  // DISTRIBUTED_TOO_MANY_PENDING_BYTES
    667,  // NOT_INITIALIZED
    692,  // TOO_MANY_MUTATIONS
    700,  // USER_SESSION_LIMIT_EXCEEDED
    722,  // ASYNC_LOAD_WAIT_FAILED: tables are still being loaded
    733,  // TABLE_IS_BEING_RESTARTED
    745,  // SERVER_OVERLOADED
    749,  // TCP_CONNECTION_LIMIT_REACHED
    762,  // HTTP_CONNECTION_LIMIT_REACHED
    776,  // RESOURCE_LIMIT_EXCEEDED
    999,  // KEEPER_EXCEPTION
    1000, // POCO_EXCEPTION: the operating system's errors
];

/// What the client's error for `what` means for the job.
pub(super) fn classify(what: String, error: &Error) -> SinkError {
    let reason = message(error);
    if is_transient(error) { SinkError::Unavailable { what, reason } } else { SinkError::Refused { what, reason } }
}

fn is_transient(error: &Error) -> bool {
    match error {
        Error::Network(_) | Error::TimedOut => true,
        Error::BadResponse(text) => match code(text) {
            Some(code) => TRANSIENT.contains(&code),
            // Not ClickHouse's words: a proxy, or a status without a text.
            None => !(text.starts_with('4') && !text.starts_with("408") && !text.starts_with("429")),
        },
        _ => false,
    }
}

/// `516` of "Code: 516. DB::Exception: …".
fn code(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once("Code: ")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The error's text with its causes, and advice on the usual mistakes.
fn message(error: &Error) -> String {
    let mut text = match error {
        // Its first paragraph; what follows is advice for the server's own console.
        Error::BadResponse(text) => text.split("\n\n").next().unwrap_or(text).trim().to_owned(),
        error => error.to_string(),
    };
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    let advice = match code(&text) {
        Some(192..=194 | 516) => "; check sinks.clickhouse.user and sinks.clickhouse.password",
        Some(497) => "; grant the user this right on the job's database",
        Some(60 | 81) => "; if the table or database was dropped, start the job again: it makes what is missing",
        _ => "",
    };
    text + advice
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(response: &str, transient: bool) {
        let error = classify("insert".into(), &Error::BadResponse(response.into()));
        assert_eq!(matches!(error, SinkError::Unavailable { .. }), transient, "{response}");
    }

    #[test]
    fn responses_are_worth_another_try_or_not() {
        check("Code: 241. DB::Exception: memory limit (total) exceeded. (MEMORY_LIMIT_EXCEEDED)", true);
        check("Code: 252. DB::Exception: Too many parts (3000). (TOO_MANY_PARTS)", true);
        check("Code: 1000. DB::Exception: No space left on device. (POCO_EXCEPTION)", true);
        check("Code: 516. DB::Exception: Authentication failed (AUTHENTICATION_FAILED)", false);
        check("Code: 60. DB::Exception: Table d.t does not exist. (UNKNOWN_TABLE)", false);
        check("Code: 24160. DB::Exception: not one of the list", false);
        check("503 Service Unavailable", true);
        check("429 Too Many Requests", true);
        check("<html>Bad Gateway</html>", true);
        check("404 Not Found", false);
    }

    #[test]
    fn codes_are_listed_once_and_in_order() {
        assert!(TRANSIENT.is_sorted_by(|a, b| a < b));
    }
}
