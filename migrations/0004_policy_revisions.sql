-- Who made a policy revision and which one runs, what each decision saw, and the work of taking away what a revision no
-- longer allows.

-- The defaults serve the previous release, which inserts without them.
ALTER TABLE leasehold.policy_revisions
  ADD COLUMN creator text NOT NULL DEFAULT 'broker',
  ADD COLUMN source  text NOT NULL DEFAULT 'directory' CHECK (source IN ('directory', 'git', 'api')),
  ADD COLUMN message text NOT NULL DEFAULT '';
CREATE INDEX policy_revisions_newest ON leasehold.policy_revisions (first_used DESC, digest);

-- Which revision runs: the newest row. Rows are never changed.
CREATE TABLE leasehold.policy_activations (
  tenant        text        NOT NULL,
  activation_id bigint      GENERATED ALWAYS AS IDENTITY,
  digest        text        NOT NULL REFERENCES leasehold.policy_revisions,
  activated_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
  actor         text        NOT NULL,
  source        text        NOT NULL CHECK (source IN ('directory', 'git', 'api', 'rollback')),
  message       text        NOT NULL,
  -- A retry finds what it did; null for a directory.
  request_id    text,
  PRIMARY KEY (tenant, activation_id),
  UNIQUE (tenant, actor, request_id)
);

-- Open leases are decided again in passes over leases_due, a batch per transaction; `cursor_*` is where the next batch
-- begins. Several passes, because another replica may have decided under the earlier revision a moment after the first.
CREATE TABLE leasehold.policy_reevaluations (
  tenant        text        NOT NULL,
  activation_id bigint      NOT NULL,
  pass          integer     NOT NULL DEFAULT 0,
  due_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
  cursor_at     timestamptz NOT NULL DEFAULT '-infinity',
  cursor_lease  text        NOT NULL DEFAULT '',
  decided       bigint      NOT NULL DEFAULT 0,
  ended         bigint      NOT NULL DEFAULT 0,
  finished_at   timestamptz,
  PRIMARY KEY (tenant, activation_id)
);
CREATE INDEX policy_reevaluations_due ON leasehold.policy_reevaluations (due_at) WHERE finished_at IS NULL;

-- NOT VALID: the rows that are there hold already, and are not read under the lock.
ALTER TABLE leasehold.leases DROP CONSTRAINT leases_settle_cause_check;
ALTER TABLE leasehold.leases ADD CONSTRAINT leases_settle_cause_check
  CHECK (settle_cause IN ('expired', 'closed', 'returned', 'superseded', 'abandoned', 'policy')) NOT VALID;

-- Decisions in the order of their ids, which begin with the time (UUIDv7): one by its id, or all since a time. Every
-- insert lands at the end.
CREATE INDEX audit_decisions ON leasehold.audit_events (tenant, ((detail ->> 'decision_id') COLLATE "C"))
  WHERE kind = 'decision.made';

GRANT SELECT, INSERT ON leasehold.policy_activations TO leasehold_broker;
GRANT SELECT, INSERT, UPDATE ON leasehold.policy_reevaluations TO leasehold_broker;
