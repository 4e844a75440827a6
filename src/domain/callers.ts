import type { Attestation, Caller, Role } from './caller.ts';
import type { PolicyRevision, PolicySource } from './policy.ts';

/**
 * What an attested workload may be to the broker: roles from configuration, agents from the running policy revision. Kept
 * per attestation, which is one object for as long as its token is cached, and worked out again under a new revision.
 */
export function createCallerResolver(
  rolesOf: (tenant: string, workload: string) => ReadonlySet<Role>,
  policy: PolicySource,
): (attestation: Attestation) => Caller {
  // A workload has many tokens at once, and both indexes give the same set for it each time.
  const withAgent = new WeakMap<ReadonlySet<Role>, ReadonlySet<Role>>();
  const asAgent = (granted: ReadonlySet<Role>): ReadonlySet<Role> => {
    let roles = withAgent.get(granted);
    if (roles === undefined) withAgent.set(granted, (roles = new Set<Role>([...granted, 'agent'])));
    return roles;
  };
  const known = new WeakMap<Attestation, { revision: PolicyRevision; caller: Caller }>();
  return (attestation) => {
    const revision = policy.current(attestation.tenant);
    const hit = known.get(attestation);
    if (hit?.revision === revision) return hit.caller;
    const agents = revision.agentsOf(attestation.workload);
    const granted = rolesOf(attestation.tenant, attestation.workload);
    const roles = agents.size === 0 ? granted : asAgent(granted);
    const caller: Caller = Object.freeze({ ...attestation, roles, agents });
    known.set(attestation, { revision, caller });
    return caller;
  };
}
