/**
 * Of leases that were never handed out (`leases`: a part of the same statement, with tenant, task_id and lease_id): the
 * uses that their writes took are there again, unless the same was asked anew meanwhile. A lease that was issued once and is
 * pending again has had its use. Uses the primary keys of approval_uses, approvals and audit_events.
 */
export function giveUsesBack(leases: string, now: string): string {
  return `unused AS (
    DELETE FROM approval_uses u USING ${leases} w
    WHERE u.tenant = w.tenant AND u.lease_id = w.lease_id AND NOT EXISTS (
      SELECT FROM audit_events e WHERE e.tenant = w.tenant AND e.task_id = w.task_id AND e.lease_id = w.lease_id
        AND e.kind IN ('lease.issued', 'lease.renewed'))
    RETURNING u.tenant, u.approval_id
  ), given_back AS (
    UPDATE approvals a SET uses_left = a.uses_left + u.uses, state = 'approved'
    FROM (SELECT tenant, approval_id, count(*)::int4 AS uses FROM unused GROUP BY tenant, approval_id) u
    WHERE a.tenant = u.tenant AND a.approval_id = u.approval_id AND a.state IN ('approved', 'used') AND a.expires_at > ${now}
      AND (a.state = 'approved' OR NOT EXISTS (
        SELECT FROM approvals o WHERE o.tenant = a.tenant AND o.task_id = a.task_id AND o.kind = a.kind AND o.agent = a.agent
          AND o.tool = a.tool AND o.tier = a.tier AND o.arguments_digest = a.arguments_digest AND o.state IN ('pending', 'approved')))
  )`;
}
