/**
 * What becomes of a lease `l` whose credential is a token of ours (its handle is empty) when it is settled at `now`, a
 * parameter. Nothing has to be asked of a target: the outcome is a matter of kind and time.
 */
export function selfContainedEnd(now: string): { outcome: string; deadBy: string } {
  return {
    outcome: `CASE
              WHEN l.expires_at <= ${now} THEN 'expired'
              WHEN l.revocation_kind <> 'immediate' THEN 'bounded'
              WHEN l.settle_cause = 'returned' THEN 'returned'
              ELSE 'revoked' END`,
    deadBy: `CASE WHEN l.expires_at > ${now} AND l.revocation_kind <> 'immediate' THEN l.expires_at END`,
  };
}

/** Of such leases as they were settled (columns of `leases`): the values of their audit events. */
export function selfContainedEvent(now: string): string {
  return `SELECT tenant, 'lease.settled', ${now}, 'broker', task_id, lease_id,
            json_build_object('tool', tool, 'tier', tier, 'outcome', outcome, 'cause', settle_cause, 'dead_by', dead_by)`;
}
