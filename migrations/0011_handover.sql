-- Tasks that go on with another agent or workload. NOT VALID: the rows that are there hold already, and are not read under
-- the lock.
ALTER TABLE leasehold.tasks DROP CONSTRAINT tasks_close_cause_check;
ALTER TABLE leasehold.tasks ADD CONSTRAINT tasks_close_cause_check
  CHECK (close_cause IN ('requested', 'deadline', 'heartbeat_lost', 'parent_closed', 'locked', 'handed_over')) NOT VALID;
ALTER TABLE leasehold.leases DROP CONSTRAINT leases_settle_cause_check;
ALTER TABLE leasehold.leases ADD CONSTRAINT leases_settle_cause_check
  CHECK (settle_cause IN ('expired', 'closed', 'returned', 'superseded', 'abandoned', 'policy', 'signal', 'lost',
    'locked', 'handed_over')) NOT VALID;
