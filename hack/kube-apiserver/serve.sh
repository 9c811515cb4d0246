#!/usr/bin/env bash
# serve.sh DIRECTORY ETCD_PORT ETCD_PEER_PORT API_PORT [ADDRESS]: an empty API server on ADDRESS (127.0.0.1), with its etcd on loopback, for
# as long as standard input stays open.
#
# Everything it has is in DIRECTORY, which goes with it: DIRECTORY/kubeconfig is for the user admin, who may do everything. Whoever
# starts it holds the other end of its standard input, so that it ends however they end, kill -9 included.
set -euo pipefail

assets=${KUBEBUILDER_ASSETS:?run: export KUBEBUILDER_ASSETS=\$(hack/kube-apiserver.sh)}
directory=$1 etcd_port=$2 peer_port=$3 api_port=$4 address=${5:-127.0.0.1}

pids=()
finish() {
    trap - EXIT
    # Nothing in there is worth an orderly end.
    [ ${#pids[@]} -eq 0 ] || kill -KILL "${pids[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$directory"
}
trap finish EXIT
trap 'exit 1' INT TERM HUP

# Whoever finds the file finds all of it.
note_pid() {
    echo "$2" >"$directory/$1.pid.new"
    mv "$directory/$1.pid.new" "$directory/$1.pid"
}

mkdir -p "$directory/certs"
chmod 0700 "$directory"
token=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
printf '%s,admin,admin,"system:masters"\n' "$token" >"$directory/tokens.csv"
openssl ecparam -name prime256v1 -genkey -noout -out "$directory/service-account.key"
cat >"$directory/kubeconfig" <<EOF
apiVersion: v1
kind: Config
current-context: test
clusters:
- name: test
  cluster:
    server: https://$address:$api_port
    certificate-authority: $directory/certs/apiserver.crt
users:
- name: admin
  user:
    token: $token
contexts:
- name: test
  context:
    cluster: test
    user: admin
EOF

etcd_url=http://127.0.0.1:$etcd_port
peer_url=http://127.0.0.1:$peer_port
# The data is gone afterwards anyway: waiting for the disk would only cost time.
"$assets/etcd" --data-dir "$directory/etcd" --unsafe-no-fsync \
    --listen-client-urls "$etcd_url" --advertise-client-urls "$etcd_url" \
    --listen-peer-urls "$peer_url" --initial-advertise-peer-urls "$peer_url" \
    --initial-cluster "default=$peer_url" \
    </dev/null >"$directory/etcd.log" 2>&1 &
pids+=($!)
note_pid etcd $!
# No controller runs beside it that would make service accounts for pods; requests are too few to be queued.
start_api() {
    "$assets/kube-apiserver" --etcd-servers "$etcd_url" \
        --bind-address "$address" --secure-port "$api_port" --advertise-address "$address" --endpoint-reconciler-type none \
        --cert-dir "$directory/certs" --token-auth-file "$directory/tokens.csv" --authorization-mode RBAC \
        --service-account-issuer https://kubernetes.default.svc --service-account-key-file "$directory/service-account.key" \
        --service-account-signing-key-file "$directory/service-account.key" --service-cluster-ip-range 10.96.0.0/16 \
        --disable-admission-plugins ServiceAccount --allow-privileged --enable-priority-and-fairness=false \
        </dev/null >>"$directory/kube-apiserver.log" 2>&1 &
    api=$!
    pids+=("$api")
    note_pid kube-apiserver "$api"
}
start_api

# Until standard input ends, or until one of the two does: then whoever waits for it wants to know why.
exec 3<&0
while IFS= read -r _ <&3; do :; done &
reader=$!
pids+=("$reader")
# Whoever wants to see a restart makes the file "restart" and kills the API server.
while :; do
    ended=
    wait -n -p ended || true
    { [ "$ended" = "$api" ] && [ -e "$directory/restart" ]; } || break
    rm "$directory/restart"
    start_api
done
if [ "$ended" != "$reader" ]; then
    echo "etcd or kube-apiserver ended by itself:" >&2
    tail -n 5 "$directory/etcd.log" "$directory/kube-apiserver.log" >&2
    exit 1
fi
