import { noArguments, type DeclaredArguments } from './arguments.ts';
import type { ChainNeeds } from './delegation/chain.ts';
import type { FactNeeds } from './facts.ts';
import type { KeyBinding, Lease, LeaseTerms, Task, ToolAccess } from './model.ts';
import type { Obligations, RenewalContext } from './policy.ts';
import type { Instant } from './time.ts';

/** What a lease is bound to beside its life; undefined, as for nearly all, when nothing. */
export function termsOf(
  args: DeclaredArguments,
  obligations: Obligations,
  now: Instant,
  boundTo: KeyBinding | undefined,
): LeaseTerms | undefined {
  const { argumentLimits = {}, renewNotBefore } = obligations;
  const plain = args.digest === noArguments.digest && Object.keys(argumentLimits).length === 0;
  if (plain && renewNotBefore === undefined && boundTo === undefined) return undefined;
  return {
    arguments: args,
    argumentLimits,
    renewNotBefore: renewNotBefore === undefined ? undefined : now + renewNotBefore,
    ...(boundTo === undefined ? {} : { boundTo }),
  };
}

export function argumentsOf(lease: Pick<Lease, 'terms'>): DeclaredArguments {
  return lease.terms?.arguments ?? noArguments;
}

/** Two thirds into its life: late enough to be useful, with a third left for retries; later when policy says so. */
export function renewAfter(lease: Pick<Lease, 'issuedAt' | 'expiresAt' | 'terms'>): Instant {
  const usual = lease.issuedAt + Math.floor(((lease.expiresAt - lease.issuedAt) * 2) / 3);
  return Math.min(Math.max(usual, lease.terms?.renewNotBefore ?? 0), lease.expiresAt);
}

export function renewalContext(lease: Lease, task: Task, now: Instant): RenewalContext {
  return {
    count: lease.renewalCount,
    age: now - lease.lineStartedAt,
    sinceIssue: now - lease.issuedAt,
    heartbeat: task.heartbeatDue !== undefined && task.heartbeatDue > now,
  };
}

/** Whose counts a decision looks at. */
export function turnsOf(
  needs: ChainNeeds,
  { task, above }: { task: Task; above: readonly Task[] | undefined },
  access: ToolAccess,
): string[] {
  const turns = (of: FactNeeds | undefined, agent: string) => {
    const scopes = new Set(of?.rates.map(({ scope }) => scope));
    return [
      ...(of?.earlier === true ? [`credentials ${task.taskId} ${access.tool}:${access.tier}`] : []),
      ...(of?.held === true || scopes.has('task') ? [`task ${task.rootTaskId}`] : []),
      ...(scopes.has('agent') ? [`agent ${agent}`] : []),
      ...(scopes.has('tool') ? [`tool ${access.tool}`] : []),
    ];
  };
  const theirs = (above ?? []).flatMap((one, index) => turns(needs.above[index], one.agent));
  return [...turns(needs.own, task.agent), ...theirs];
}
