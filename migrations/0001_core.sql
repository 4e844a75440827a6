-- Tasks, leases, audit events and the revocation feed.
--
-- Every table leads with `tenant`. The broker connects with a login that is a member of leasehold_broker and owns
-- nothing: it can add audit events and never change or remove one.

DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'leasehold_broker') THEN
    CREATE ROLE leasehold_broker NOLOGIN;
  END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
  NULL; -- Roles belong to the whole cluster: another database's migration made it at the same moment.
END
$$;

CREATE TABLE tasks (
  tenant          text        NOT NULL,
  task_id         text        NOT NULL,
  root_task_id    text        NOT NULL,
  parent_task_id  text,
  request_id      text        NOT NULL,
  request_digest  text        NOT NULL,
  intent          text        NOT NULL,
  agent           text        NOT NULL,
  opener          text        NOT NULL,
  agent_workload  text,
  tools           jsonb       NOT NULL,
  context         jsonb       NOT NULL,
  state           text        NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'closing', 'closed', 'close_degraded')),
  close_cause     text        CHECK (close_cause IN ('requested', 'deadline', 'heartbeat_lost', 'parent_closed')),
  opened_at       timestamptz NOT NULL,
  deadline        timestamptz NOT NULL,
  closed_at       timestamptz,
  settled_at      timestamptz,
  heartbeat_ms    bigint,
  heartbeat_due   timestamptz,
  epoch           bigint      NOT NULL DEFAULT 1,
  status_index    bigint      GENERATED ALWAYS AS IDENTITY,
  PRIMARY KEY (tenant, task_id),
  UNIQUE (tenant, opener, request_id),
  CHECK ((state = 'open') = (closed_at IS NULL))
);
-- The expire worker: open tasks by the time at which they end by themselves.
CREATE INDEX tasks_due ON tasks (LEAST(deadline, heartbeat_due)) WHERE state = 'open';
-- The settle worker: tasks that wait for their leases.
CREATE INDEX tasks_unsettled ON tasks (closed_at) WHERE closed_at IS NOT NULL AND settled_at IS NULL;
-- Subtree close.
CREATE INDEX tasks_children ON tasks (tenant, parent_task_id) WHERE parent_task_id IS NOT NULL;
-- Status lists: closed tasks by their position.
CREATE INDEX tasks_status ON tasks (status_index) WHERE state <> 'open';

CREATE TABLE leases (
  tenant          text        NOT NULL,
  lease_id        text        NOT NULL,
  task_id         text        NOT NULL,
  request_id      text        NOT NULL,
  agent           text        NOT NULL,
  workload        text        NOT NULL,
  tool            text        NOT NULL,
  tier            text        NOT NULL CHECK (tier IN ('read', 'write', 'execute')),
  provider        text        NOT NULL,
  handle          text        NOT NULL,
  state           text        NOT NULL CHECK (state IN ('pending', 'active', 'settling', 'settled')),
  outcome         text        CHECK (outcome IN ('revoked', 'expired', 'returned', 'bounded', 'irrevocable')),
  revocation_kind text        NOT NULL CHECK (revocation_kind IN ('immediate', 'bounded', 'none')),
  issued_at       timestamptz NOT NULL,
  expires_at      timestamptz NOT NULL,
  settle_at       timestamptz NOT NULL,
  settled_at      timestamptz,
  dead_by         timestamptz,
  renewed_from    text,
  renewal_count   integer     NOT NULL DEFAULT 0,
  line_started_at timestamptz NOT NULL,
  policy_revision text        NOT NULL,
  policy_rule     text        NOT NULL,
  settle_cause    text        CHECK (settle_cause IN ('expired', 'closed', 'returned', 'superseded', 'abandoned')),
  settle_attempts integer     NOT NULL DEFAULT 0,
  settle_error    text,
  PRIMARY KEY (tenant, lease_id),
  -- Also finds a task's leases.
  UNIQUE (tenant, task_id, request_id),
  CHECK ((state = 'settled') = (outcome IS NOT NULL)),
  CHECK ((outcome = 'bounded') = (dead_by IS NOT NULL) OR outcome IS NULL)
);
-- The one queue of the settle worker: `settle_at` is when somebody has to look (expiry, close, retry, end of a claim).
CREATE INDEX leases_due ON leases (settle_at) WHERE state <> 'settled';
-- The operator's list.
CREATE INDEX leases_troubled ON leases (tenant, lease_id)
  WHERE outcome = 'irrevocable' OR (state <> 'settled' AND settle_error IS NOT NULL);

CREATE TABLE audit_events (
  tenant   text        NOT NULL,
  event_id bigint      GENERATED ALWAYS AS IDENTITY,
  kind     text        NOT NULL,
  at       timestamptz NOT NULL,
  actor    text        NOT NULL,
  task_id  text        NOT NULL,
  lease_id text,
  -- json, not jsonb: the bytes stay as they were written.
  detail   json        NOT NULL,
  PRIMARY KEY (tenant, task_id, event_id)
);

CREATE TABLE revocations (
  tenant     text        NOT NULL,
  position   bigint      GENERATED ALWAYS AS IDENTITY,
  task_id    text,
  lease_id   text,
  revoked_at timestamptz NOT NULL,
  forget_at  timestamptz NOT NULL,
  -- Positions are given before the commit; a follower tails by transaction, so that a late commit is not missed.
  txid       xid8        NOT NULL DEFAULT pg_current_xact_id(),
  PRIMARY KEY (tenant, position),
  CHECK (num_nonnulls(task_id, lease_id) = 1)
);
CREATE INDEX revocations_recent ON revocations (tenant, revoked_at);
CREATE INDEX revocations_tail ON revocations (tenant, txid);
CREATE INDEX revocations_forget ON revocations (forget_at);

CREATE TABLE policy_revisions (
  digest     text        PRIMARY KEY,
  documents  text        NOT NULL,
  first_used timestamptz NOT NULL
);

GRANT USAGE ON SCHEMA leasehold TO leasehold_broker;
GRANT SELECT, INSERT, UPDATE ON tasks, leases TO leasehold_broker;
GRANT SELECT, INSERT ON audit_events, policy_revisions TO leasehold_broker;
GRANT SELECT, INSERT, DELETE ON revocations TO leasehold_broker;
GRANT SELECT ON schema_migrations TO leasehold_broker;
