//! What tells a topic from another one that is made under its name after it was removed: the id that brokers give each topic.
//!
//! Offsets alone do not tell: those of a new topic are soon as large as the old one's were. rdkafka has no such call; librdkafka's
//! `DescribeTopics` is called here.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::time::Duration;

use rdkafka::bindings::{
    rd_kafka_AdminOptions_destroy, rd_kafka_AdminOptions_new, rd_kafka_AdminOptions_set_request_timeout, rd_kafka_DescribeTopics,
    rd_kafka_DescribeTopics_result_topics, rd_kafka_TopicCollection_destroy, rd_kafka_TopicCollection_of_topic_names,
    rd_kafka_TopicDescription_error, rd_kafka_TopicDescription_name, rd_kafka_TopicDescription_topic_id, rd_kafka_Uuid_base64str,
    rd_kafka_Uuid_least_significant_bits, rd_kafka_Uuid_most_significant_bits, rd_kafka_admin_op_t, rd_kafka_error_code,
    rd_kafka_event_DescribeTopics_result, rd_kafka_event_destroy, rd_kafka_event_error, rd_kafka_event_t, rd_kafka_queue_destroy,
    rd_kafka_queue_new, rd_kafka_queue_poll, rd_kafka_resp_err_t as Code,
};
use rdkafka::client::Client;

use super::Context;

/// How long the brokers may take.
pub(super) const WAIT: Duration = Duration::from_secs(5);

/// The ids of those of `topics` that exist and of which the brokers say it: Kafka does from 2.8 on. None if they do not answer.
pub(super) fn of_topics<'a>(client: &Client<Context>, topics: impl IntoIterator<Item = &'a String>) -> Option<BTreeMap<String, String>> {
    let names: Vec<CString> = topics.into_iter().filter_map(|name| CString::new(name.as_str()).ok()).collect();
    let mut pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
    let wait_ms = WAIT.as_millis() as i32;
    let handle = client.native_ptr();
    // SAFETY: the client lives while it is borrowed, and with it `handle`. The names and the array of pointers to them outlive the calls that read
    // them. Everything that is made here is destroyed here, once, and after the last use: the options, the collection and the queue when
    // the answer has come or its time is up (librdkafka then drops the answer with the queue), the event in `ids`.
    unsafe {
        let options = rd_kafka_AdminOptions_new(handle, rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        let mut refused = [0; 256];
        rd_kafka_AdminOptions_set_request_timeout(options, wait_ms, refused.as_mut_ptr(), refused.len());
        let collection = rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        let queue = rd_kafka_queue_new(handle);
        rd_kafka_DescribeTopics(handle, collection, options, queue);
        let event = rd_kafka_queue_poll(queue, wait_ms);
        let ids = if event.is_null() { None } else { ids(event) };
        rd_kafka_TopicCollection_destroy(collection);
        rd_kafka_AdminOptions_destroy(options);
        rd_kafka_queue_destroy(queue);
        ids
    }
}

/// Reads the answer and destroys it.
///
/// # Safety
/// `event` must be one of librdkafka's, not destroyed.
unsafe fn ids(event: *mut rd_kafka_event_t) -> Option<BTreeMap<String, String>> {
    let mut ids = BTreeMap::new();
    // SAFETY: the event lives until it is destroyed below, and with it all that it leads to; texts are copied before.
    unsafe {
        let result = rd_kafka_event_DescribeTopics_result(event);
        let answered = rd_kafka_event_error(event) == Code::RD_KAFKA_RESP_ERR_NO_ERROR && !result.is_null();
        if answered {
            let mut count = 0;
            let topics = rd_kafka_DescribeTopics_result_topics(result, &mut count);
            for topic in (0..count).map(|at| *topics.add(at)) {
                let error = rd_kafka_TopicDescription_error(topic);
                let id = rd_kafka_TopicDescription_topic_id(topic);
                let exists = error.is_null() || rd_kafka_error_code(error) == Code::RD_KAFKA_RESP_ERR_NO_ERROR;
                // All zero: the brokers have none.
                if !exists || id.is_null() || rd_kafka_Uuid_most_significant_bits(id) == 0 && rd_kafka_Uuid_least_significant_bits(id) == 0
                {
                    continue;
                }
                let text = |text| CStr::from_ptr(text).to_string_lossy().into_owned();
                ids.insert(text(rd_kafka_TopicDescription_name(topic)), text(rd_kafka_Uuid_base64str(id)));
            }
        }
        rd_kafka_event_destroy(event);
        answered.then_some(ids)
    }
}
