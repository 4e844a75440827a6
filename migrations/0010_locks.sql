-- Locks (the kill switch), and what makes them hold on every replica.

CREATE TABLE leasehold.locks (
  -- Whose work is locked; '*' is every tenant's.
  tenant        text        NOT NULL,
  lock_id       text        NOT NULL,
  scope         text        NOT NULL CHECK (scope IN ('agent', 'workload', 'tool', 'task', 'tenant', 'all')),
  -- Agent, workload pattern, tool or task; empty for a tenant and for all.
  subject       text        NOT NULL,
  -- Only of a tool; NULL: all its tiers.
  tier          text        CHECK (tier IN ('read', 'write', 'execute')),
  -- Only of a task: the top of its tree.
  root_task_id  text,
  reason        text        NOT NULL,
  -- The tenant of whoever placed it: lifting it is for the same people.
  placed_in     text        NOT NULL,
  placed_by     text        NOT NULL,
  placed_at     timestamptz NOT NULL,
  request_id    text        NOT NULL,
  expires_at    timestamptz,
  -- Close and settle what is open under it.
  settle        boolean     NOT NULL,
  -- When nothing was left open under it.
  settled_at    timestamptz,
  -- Until then one replica is at it.
  settle_claim  timestamptz NOT NULL DEFAULT '-infinity',
  people_to_lift integer    NOT NULL CHECK (people_to_lift IN (1, 2)),
  state         text        NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'lifted', 'expired')),
  lift_asked_by text,
  lift_asked_at timestamptz,
  lift_reason   text        NOT NULL DEFAULT '',
  ended_by      text,
  ended_at      timestamptz,
  PRIMARY KEY (tenant, lock_id),
  UNIQUE (placed_in, placed_by, request_id),
  CHECK ((scope = 'all') = (tenant = '*')),
  CHECK ((scope = 'task') = (root_task_id IS NOT NULL)),
  CHECK (tier IS NULL OR scope = 'tool'),
  CHECK ((state = 'active') = (ended_at IS NULL))
);
-- What every replica keeps in memory, and the two workers.
CREATE INDEX locks_in_force ON leasehold.locks (tenant, lock_id) WHERE state = 'active';

-- One row for all tenants: it changes with every lock that is placed or ends, in the same transaction. A replica decides by
-- the locks as of one epoch, and writes only while that epoch stands (src/storage/lock-gate.ts).
CREATE TABLE leasehold.lock_state (
  one   boolean PRIMARY KEY DEFAULT true CHECK (one),
  epoch bigint  NOT NULL
);
INSERT INTO leasehold.lock_state (epoch) VALUES (1);

-- Never holds a row. Its table lock is the gate between those who write and whoever places a lock.
CREATE TABLE leasehold.lock_gate (one boolean PRIMARY KEY CHECK (one));

-- What a lock that settles looks for.
CREATE INDEX tasks_open ON leasehold.tasks (tenant, agent) WHERE state = 'open';

-- What nothing can revoke, by when it is dead.
CREATE INDEX leases_bounded ON leasehold.leases (dead_by) WHERE outcome = 'bounded';

-- NOT VALID: the rows that are there hold already, and are not read under the lock.
ALTER TABLE leasehold.tasks DROP CONSTRAINT tasks_close_cause_check;
ALTER TABLE leasehold.tasks ADD CONSTRAINT tasks_close_cause_check
  CHECK (close_cause IN ('requested', 'deadline', 'heartbeat_lost', 'parent_closed', 'locked')) NOT VALID;
ALTER TABLE leasehold.leases DROP CONSTRAINT leases_settle_cause_check;
ALTER TABLE leasehold.leases ADD CONSTRAINT leases_settle_cause_check
  CHECK (settle_cause IN ('expired', 'closed', 'returned', 'superseded', 'abandoned', 'policy', 'signal', 'lost', 'locked')) NOT VALID;

GRANT SELECT, INSERT, UPDATE ON leasehold.locks TO leasehold_broker;
GRANT SELECT, UPDATE ON leasehold.lock_state TO leasehold_broker;
-- UPDATE is what locking the table takes; there is no row to change, and none can be added.
GRANT SELECT, UPDATE ON leasehold.lock_gate TO leasehold_broker;
