import type { Role } from '../domain/caller.ts';
import type { AccessGrant } from './config.ts';
import { workloadIndex } from './workload-pattern.ts';

/** What a workload may be to the broker, besides an agent. Memoised within a bound. */
export function resolveRoles(access: readonly AccessGrant[]): (workload: string) => ReadonlySet<Role> {
  return workloadIndex<Role>(
    access.flatMap((grant) =>
      grant.workloads.flatMap((pattern) => grant.roles.map((role): [string, Role] => [pattern, role])),
    ),
  );
}
