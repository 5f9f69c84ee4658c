//! What librdkafka's errors mean to a sink.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::SinkError;

/// Why a step towards the brokers failed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Failure {
    /// A newer producer has the transactional id, or the coordinator ended a transaction that took too long. The record of what
    /// was committed tells which of the two.
    #[error("fenced: {0}")]
    Fenced(String),
    /// Trying again may help.
    #[error("{0}")]
    Unavailable(String),
    /// Trying again does not help.
    #[error("{0}")]
    Refused(String),
}

impl Failure {
    pub fn into_sink_error(self, what: String) -> SinkError {
        match self {
            Failure::Refused(reason) => SinkError::Refused { what, reason },
            Failure::Unavailable(reason) => SinkError::Unavailable { what, reason },
            // Whoever took over has not said so yet; it will have when the call is tried again.
            fenced @ Failure::Fenced(_) => SinkError::unavailable(what, fenced),
        }
    }
}

impl From<KafkaError> for Failure {
    fn from(error: KafkaError) -> Self {
        let text = describe(&error);
        match error {
            KafkaError::ClientConfig(_, reason, name, _) => {
                Failure::Refused(format!("librdkafka's setting `{name}`: {reason}; mend sinks.kafka.properties"))
            }
            KafkaError::ClientCreation(reason) => Failure::Refused(format!("no client: {reason}; mend sinks.kafka.properties")),
            KafkaError::AdminOp(code) => of_code(code, text),
            error => match error.rdkafka_error_code() {
                Some(code) => of_code(code, text),
                None => Failure::Unavailable(text),
            },
        }
    }
}

/// librdkafka's own words about a transaction say more than the code does.
fn describe(error: &KafkaError) -> String {
    match error {
        KafkaError::Transaction(transaction) => transaction.string(),
        other => other.to_string(),
    }
}

/// The failure that a code stands for.
pub(super) fn of_code(code: RDKafkaErrorCode, text: String) -> Failure {
    use RDKafkaErrorCode as Code;
    match code {
        Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch => Failure::Fenced(text),
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed => Failure::Refused(format!("{text}; give the job's user that right")),
        Code::Authentication | Code::SaslAuthenticationFailed | Code::UnsupportedSASLMechanism | Code::IllegalSASLState => {
            Failure::Refused(format!("{text}; mend the credentials in sinks.kafka.properties"))
        }
        Code::MessageSizeTooLarge => {
            Failure::Refused(format!("{text}; lower sinks.kafka.message_bytes_max below the topic's max.message.bytes"))
        }
        Code::InvalidTransactionTimeout => {
            Failure::Refused(format!("{text}; lower transaction.timeout.ms in sinks.kafka.properties to what the brokers allow"))
        }
        Code::InvalidTopic | Code::InvalidPartitions | Code::PolicyViolation | Code::UnsupportedVersion | Code::UnsupportedFeature => {
            Failure::Refused(text)
        }
        _ => Failure::Unavailable(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(code: RDKafkaErrorCode, expected: Expect) {
        expected.assert_eq(&format!("{:?}", of_code(code, "it said".into())));
    }

    #[test]
    fn a_code_says_whether_trying_again_helps() {
        check(RDKafkaErrorCode::Fenced, expect![[r#"Fenced("it said")"#]]);
        check(RDKafkaErrorCode::ProducerFenced, expect![[r#"Fenced("it said")"#]]);
        check(RDKafkaErrorCode::InvalidProducerEpoch, expect![[r#"Fenced("it said")"#]]);
        check(RDKafkaErrorCode::OperationTimedOut, expect![[r#"Unavailable("it said")"#]]);
        check(RDKafkaErrorCode::AllBrokersDown, expect![[r#"Unavailable("it said")"#]]);
        check(RDKafkaErrorCode::NotEnoughReplicas, expect![[r#"Unavailable("it said")"#]]);
        check(RDKafkaErrorCode::ConcurrentTransactions, expect![[r#"Unavailable("it said")"#]]);
        check(
            RDKafkaErrorCode::MessageSizeTooLarge,
            expect![[r#"Refused("it said; lower sinks.kafka.message_bytes_max below the topic's max.message.bytes")"#]],
        );
        check(RDKafkaErrorCode::TopicAuthorizationFailed, expect![[r#"Refused("it said; give the job's user that right")"#]]);
        check(
            RDKafkaErrorCode::SaslAuthenticationFailed,
            expect![[r#"Refused("it said; mend the credentials in sinks.kafka.properties")"#]],
        );
    }

    #[test]
    fn a_wrapped_code_is_found() {
        let admin = Failure::from(KafkaError::AdminOp(RDKafkaErrorCode::ClusterAuthorizationFailed));
        assert!(matches!(admin, Failure::Refused(_)), "{admin:?}");
        let canceled = Failure::from(KafkaError::Canceled);
        assert!(matches!(canceled, Failure::Unavailable(_)), "{canceled:?}");
        let fenced = Failure::Fenced("by whom".into()).into_sink_error("topic".into());
        assert_eq!(fenced.to_string(), "topic: fenced: by whom");
        assert!(matches!(fenced, SinkError::Unavailable { .. }));
    }
}
