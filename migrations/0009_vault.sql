-- Tokens that a provider holds at its server for one task (Vault): the accessor, which finds and ends the token and opens
-- nothing. The token itself is in the memory of the replica that asked for it, and nowhere else. A row is there as long as
-- the token may be.
CREATE TABLE leasehold.task_tokens (
  tenant     text        NOT NULL,
  server     text        NOT NULL,
  accessor   text        NOT NULL,
  task_id    text        NOT NULL,
  expires_at timestamptz NOT NULL,
  -- Nothing more is made with it: it is ended when the last lease that names it is settled.
  retired    boolean     NOT NULL DEFAULT false,
  -- When somebody has to look: a heartbeat, the end of a claim.
  due_at     timestamptz NOT NULL,
  PRIMARY KEY (tenant, server, accessor)
);
CREATE INDEX task_tokens_due ON leasehold.task_tokens (due_at);
-- By a handle, which names no tenant.
CREATE UNIQUE INDEX task_tokens_accessor ON leasehold.task_tokens (server, accessor);

-- Which leases of a Vault server are ours: a handle is vault:<server>/<accessor>=<lease at Vault>.
CREATE INDEX leases_at_vault ON leasehold.leases (split_part(split_part(handle, '=', 2), ' ', 1)) WHERE provider = 'vault';

-- NOT VALID: the rows that are there hold already, and are not read under the lock. Lost: its target had ended it.
ALTER TABLE leasehold.leases DROP CONSTRAINT leases_settle_cause_check;
ALTER TABLE leasehold.leases ADD CONSTRAINT leases_settle_cause_check
  CHECK (settle_cause IN ('expired', 'closed', 'returned', 'superseded', 'abandoned', 'policy', 'signal', 'lost')) NOT VALID;

GRANT SELECT, INSERT, UPDATE, DELETE ON leasehold.task_tokens TO leasehold_broker;
