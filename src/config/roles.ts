import type { Role } from '../domain/caller.ts';
import type { TenantConfig } from './config.ts';
import { workloadIndex } from './workload-pattern.ts';

/** What a workload may be to the broker, besides an agent: to its own tenant alone. Memoised within a bound. */
export function resolveRoles(
  tenants: readonly TenantConfig[],
): (tenant: string, workload: string) => ReadonlySet<Role> {
  const byTenant = new Map(tenants.map(({ name, access }) => [name, rolesOf(access)]));
  return (tenant, workload) => byTenant.get(tenant)?.(workload) ?? none;
}

const none: ReadonlySet<Role> = new Set();

function rolesOf(access: TenantConfig['access']) {
  return workloadIndex<Role>(
    access.flatMap((grant) =>
      grant.workloads.flatMap((pattern) => grant.roles.map((role): [string, Role] => [pattern, role])),
    ),
  );
}
