-- Approvals that a task holds for a task directly below it. `agent` is whoever may use it, so that the previous release,
-- which asks for the agent of `task_id` itself, hands nothing out on one; `parent_agent` is the agent of `task_id`. NOT VALID:
-- the rows that are there hold already, and are not read under the lock.
ALTER TABLE leasehold.approvals ADD COLUMN parent_agent text;
ALTER TABLE leasehold.approvals DROP CONSTRAINT approvals_kind_check;
ALTER TABLE leasehold.approvals ADD CONSTRAINT approvals_kind_check
  CHECK (kind IN ('request', 'break_glass', 'for_child')) NOT VALID;
ALTER TABLE leasehold.approvals ADD CONSTRAINT approvals_parent_agent_check
  CHECK ((kind = 'for_child') = (parent_agent IS NOT NULL)) NOT VALID;
-- The same exact request is asked once for an agent below, whichever of its tasks comes to use it.
CREATE UNIQUE INDEX approvals_live_for_child ON leasehold.approvals
  (tenant, task_id, agent, tool, tier, arguments_digest, policy_revision)
  WHERE kind = 'for_child' AND state IN ('pending', 'approved');
-- How many an agent has asked for lately on behalf of those below it.
CREATE INDEX approvals_of_parent_agent ON leasehold.approvals (tenant, parent_agent, requested_at)
  WHERE parent_agent IS NOT NULL;
