-- Signals: what others know of a workload, agent, tool or task, and the work of deciding open leases again because of them.

-- One row for each thing that one source says of one subject: its newest word. Earlier ones are in the audit.
CREATE TABLE leasehold.signals (
  tenant       text        NOT NULL,
  subject_kind text        NOT NULL CHECK (subject_kind IN ('agent', 'workload', 'tool', 'task')),
  subject      text        NOT NULL,
  kind         text        NOT NULL,
  source       text        NOT NULL,
  signal_id    text        NOT NULL,
  value        integer     NOT NULL CHECK (value BETWEEN 0 AND 100),
  reason       text        NOT NULL,
  reported_by  text        NOT NULL,
  reported_at  timestamptz NOT NULL,
  -- When it happened, as its source says: an older word that arrives later changes nothing.
  occurred_at  timestamptz NOT NULL,
  expires_at   timestamptz,
  cleared_at   timestamptz,
  -- By the database's clock, which all replicas share.
  changed_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  -- Replicas follow by transaction, so that a late commit is not missed.
  txid         xid8        NOT NULL DEFAULT pg_current_xact_id(),
  PRIMARY KEY (tenant, subject_kind, subject, kind, source)
);
CREATE UNIQUE INDEX signals_by_id ON leasehold.signals (tenant, signal_id);
CREATE INDEX signals_tail ON leasehold.signals (txid);
-- What is over is forgotten after a while.
CREATE INDEX signals_over ON leasehold.signals (COALESCE(cleared_at, expires_at))
  WHERE cleared_at IS NOT NULL OR expires_at IS NOT NULL;

-- A retry finds what it did. The jti of a security event token is its request.
CREATE TABLE leasehold.signal_requests (
  tenant     text        NOT NULL,
  reporter   text        NOT NULL,
  request_id text        NOT NULL,
  digest     text        NOT NULL,
  signal_ids text[]      NOT NULL,
  made_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (tenant, reporter, request_id)
);
CREATE INDEX signal_requests_old ON leasehold.signal_requests (made_at);

-- A row for each signal, written with it: the open leases of its subject are decided again, in passes, each in batches
-- after `cursor_lease`. Later passes meet what was decided by a replica that had not heard of the signal.
CREATE TABLE leasehold.signal_reevaluations (
  tenant       text        NOT NULL,
  position     bigint      GENERATED ALWAYS AS IDENTITY,
  subject_kind text        NOT NULL,
  subject      text        NOT NULL,
  signal_id    text        NOT NULL,
  pass         integer     NOT NULL DEFAULT 0,
  began_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
  due_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
  cursor_lease text        NOT NULL DEFAULT '',
  PRIMARY KEY (tenant, position)
);
CREATE INDEX signal_reevaluations_due ON leasehold.signal_reevaluations (due_at);

-- The open tasks of an agent and of a workload, whose leases a signal concerns: the leases themselves need no further index.
CREATE INDEX tasks_open_of_agent ON leasehold.tasks (tenant, agent) WHERE state = 'open';
CREATE INDEX tasks_open_of_workload ON leasehold.tasks (tenant, agent_workload) WHERE state = 'open';

-- NOT VALID: the rows that are there hold already, and are not read under the lock.
ALTER TABLE leasehold.leases DROP CONSTRAINT leases_settle_cause_check;
ALTER TABLE leasehold.leases ADD CONSTRAINT leases_settle_cause_check
  CHECK (settle_cause IN ('expired', 'closed', 'returned', 'superseded', 'abandoned', 'policy', 'signal')) NOT VALID;

GRANT SELECT, INSERT, UPDATE, DELETE ON leasehold.signals TO leasehold_broker;
GRANT SELECT, INSERT, DELETE ON leasehold.signal_requests TO leasehold_broker;
GRANT SELECT, INSERT, UPDATE, DELETE ON leasehold.signal_reevaluations TO leasehold_broker;
