#!/usr/bin/env bash
# A real Kafka broker for development, without Docker: one KRaft node on this machine.
#
#   deploy/dev/kafka.sh start    fetch Kafka if needed, start it, wait until it answers
#   deploy/dev/kafka.sh stop     stop it; topics stay
#   deploy/dev/kafka.sh wipe     stop it and remove its topics
#
# It needs a JDK 17 and Maven, which copies Kafka and what it runs on from Maven Central into a cache folder.
#
#   KAFKA_VERSION   4.1.1
#   KAFKA_PORT      9092; the controller takes the next one
#   KAFKA_CACHE     where jars are kept: ~/.cache/orderflow/kafka
#   KAFKA_DATA      where topics are kept: a folder beside the jars, one for each port
set -euo pipefail

version=${KAFKA_VERSION:-4.1.1}
port=${KAFKA_PORT:-9092}
cache=${KAFKA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/orderflow/kafka}
data=${KAFKA_DATA:-$cache/data-$port}
jars=$cache/$version
pid_file=$data/pid
log=$data/server.log

die() {
    echo "kafka.sh: $*" >&2
    exit 1
}

# Whether the process whose id is in the file is still our broker, and not another that got its number.
running() {
    [[ -f $pid_file ]] && ps -p "$(<"$pid_file")" -o args= 2>/dev/null | grep -q "kafka.Kafka $data/server.properties"
}

answers() {
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null
}

fetch() {
    [[ -f $jars/.complete ]] && return
    command -v mvn >/dev/null || die "Maven (mvn) is needed to fetch Kafka"
    echo "fetching Kafka $version"
    mkdir -p "$jars"
    cat >"$jars/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>orderflow.dev</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>$version</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId>
      <artifactId>slf4j-simple</artifactId>
      <version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
POM
    mvn -q -B -f "$jars/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
        -DincludeScope=runtime -DoutputDirectory="$jars/lib" || die "Maven could not fetch Kafka $version"
    touch "$jars/.complete"
}

configure() {
    mkdir -p "$data"
    # Replication factors of the internal topics are 1, as there is one node; rebalances do not wait for more members.
    cat >"$data/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$((port + 1))
advertised.listeners=PLAINTEXT://127.0.0.1:$port
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:$((port + 1))
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$data/log
num.partitions=1
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
# The default of 128 MiB does not always fit into the heap below.
log.cleaner.dedupe.buffer.size=16777216
group.initial.rebalance.delay.ms=0
# A broker that was killed and started again is taken for a second one until its session is over: 9 s by default.
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
# How often transactions are looked for that have timed out: 10 s by default.
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
PROPERTIES
}

java=(java -Xms128m "-Xmx${KAFKA_HEAP:-512m}" -cp "$jars/lib/*")

start() {
    if running; then
        echo "Kafka is running on 127.0.0.1:$port"
        return
    fi
    ! answers || die "port $port is taken by another program; set KAFKA_PORT"
    command -v java >/dev/null || die "Java 17 (java) is needed to run Kafka"
    fetch
    configure
    if [[ ! -f $data/log/meta.properties ]]; then
        "${java[@]}" kafka.tools.StorageTool format --standalone -c "$data/server.properties" \
            -t "$("${java[@]}" kafka.tools.StorageTool random-uuid 2>/dev/null)" >"$log" 2>&1 || die "the storage could not be formatted; see $log"
    fi
    nohup "${java[@]}" kafka.Kafka "$data/server.properties" </dev/null >>"$log" 2>&1 &
    echo $! >"$pid_file"
    for _ in $(seq 600); do
        if answers; then
            echo "Kafka $version is running on 127.0.0.1:$port (log: $log)"
            return
        fi
        running || die "Kafka ended while it was starting; see $log"
        sleep 0.1
    done
    die "Kafka does not answer on port $port after a minute; see $log"
}

stop() {
    if ! running; then
        echo "Kafka is not running on port $port"
        rm -f "$pid_file"
        return
    fi
    local pid
    pid=$(<"$pid_file")
    kill "$pid"
    for _ in $(seq 300); do
        if ! running; then
            rm -f "$pid_file"
            echo "Kafka is stopped"
            return
        fi
        sleep 0.1
    done
    kill -9 "$pid"
    rm -f "$pid_file"
    echo "Kafka did not stop within 30 s and was killed"
}

case ${1:-} in
start) start ;;
stop) stop ;;
wipe)
    stop
    [[ ! -d $data || -f $data/server.properties ]] || die "$data holds something else"
    rm -rf "$data"
    echo "removed $data"
    ;;
*) die "usage: $0 start|stop|wipe" ;;
esac
