import { BrokerError } from '../../domain/errors.ts';
import { bearsMark, idTime, type InstallationMark } from '../../domain/ids.ts';
import type { HeldAtTarget, TargetInventory } from '../../domain/provider.ts';
import { within } from '../../domain/within.ts';
import { withoutSecrets } from './errors.ts';
import { defaults, type Connection, type Target } from './target.ts';

const mostAtOnce = 10_000;

/**
 * Lease roles of a target, in order of name. Roles belong to the whole cluster: targets that are databases of one cluster
 * show the same ones, each under its own handles, and the lease id says which they are.
 */
export function createInventory(
  targets: ReadonlyMap<string, Target>,
  mark: InstallationMark,
  targetOf: (name: string) => Target,
): TargetInventory {
  async function ask<T>(name: string, signal: AbortSignal, work: (connection: Connection) => Promise<T>): Promise<T> {
    const target = targetOf(name);
    const timeout = target.config.revokeTimeout ?? defaults.revokeTimeout;
    try {
      return await within(timeout, (bounded) => target.revoking.use(bounded, work), signal);
    } catch (error) {
      const cause = withoutSecrets(error, [target.config.password]);
      throw new BrokerError('PROVIDER_UNAVAILABLE', `target ${name} cannot be listed: ${cause.message}`, { cause });
    }
  }

  return {
    targets: () => [...targets.keys()],

    list: (name, after, limit, signal) =>
      ask(name, signal, async ({ query }) => {
        const most = Math.max(1, Math.min(limit, mostAtOnce));
        // PostgreSQL 16 makes the creator of a role a member of it with ADMIN OPTION, unless it is a superuser.
        const { rows } = await query(
          `SELECT r.rolname::text AS role, me.rolsuper OR EXISTS (
              SELECT FROM pg_auth_members m WHERE m.roleid = r.oid AND m.member = me.oid AND m.admin_option) AS ours
            FROM pg_roles r, (SELECT oid, rolsuper FROM pg_roles WHERE rolname = current_user) me
            WHERE r.rolname ~ '^lh_[0-9a-f]{32}$' AND r.rolname > $1 ORDER BY r.rolname LIMIT $2`,
          [after ?? '', most],
        );
        const found = rows as { role: string; ours: boolean }[];
        return {
          held: found.map(({ role, ours }): HeldAtTarget => {
            const leaseId = `lse_${role.slice(3)}`;
            return {
              handle: `${name}/${role}`,
              leaseId,
              taskId: undefined,
              madeAt: idTime(leaseId),
              owner: bearsMark(leaseId, mark) ? 'ours' : ours ? 'unmarked' : 'other',
            };
          }),
          next: found.length < most ? undefined : found.at(-1)!.role,
        };
      }),

    present: (name, handles, signal) =>
      ask(name, signal, async ({ query }) => {
        const roles = handles.map((handle) => handle.slice(name.length + 1));
        const { rows } = await query('SELECT rolname::text AS role FROM pg_roles WHERE rolname = ANY($1::text[])', [
          roles,
        ]);
        return new Set((rows as { role: string }[]).map(({ role }) => `${name}/${role}`));
      }),
  };
}
