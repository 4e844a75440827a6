import type { PolicySourceConfig } from './config/config.ts';
import { createDatabasePolicy } from './database-policy.ts';
import { BrokerError } from './domain/errors.ts';
import type { PolicyRevision, PolicySource, TenantPolicy } from './domain/policy.ts';
import { activationEvent, type CompileFiles, type PolicyStore } from './domain/revisions.ts';
import type { Clock } from './domain/time.ts';
import { describeRevision } from './policy/canonical.ts';
import type { KnownNames } from './policy/check-documents.ts';
import { compilePolicy } from './policy/compile.ts';
import { loadPolicyTexts } from './policy/load-policy.ts';
import { gitCommit } from './policy/git-checkout.ts';
import { watchPolicy } from './policy/watch-policy.ts';
import { createRecordedPolicy } from './recorded-policy.ts';

/** A tenant's policy as the broker runs it, whatever drives it. */
export interface RunningPolicy extends TenantPolicy {
  /** Brings it up to date; called in short intervals, and when another replica tells of a change. */
  refresh(): Promise<void>;
  status(): { ready: boolean; detail: string };
  close(): void;
}

export interface PolicySourceOptions {
  config: PolicySourceConfig;
  known: KnownNames;
  store: PolicyStore;
  tenant: string;
  clock: Clock;
  onRunning: (revision: PolicyRevision) => void;
  onRefused: (issues: readonly object[]) => void;
  onError: (error: unknown) => void;
}

/** Policy of all tenants. A caller's tenant is one of the configuration's, so that a missing one is a fault of ours. */
export function policiesOf(running: ReadonlyMap<string, RunningPolicy>): PolicySource {
  const of = (tenant: string): RunningPolicy => {
    const policy = running.get(tenant);
    if (policy === undefined) throw new Error(`no policy runs for tenant ${tenant}`);
    return policy;
  };
  return {
    tenants: [...running.keys()],
    current: (tenant) => of(tenant).current(),
    lastError: (tenant) => of(tenant).lastError(),
  };
}

export async function openPolicy(options: PolicySourceOptions): Promise<RunningPolicy> {
  return options.config.source === 'database'
    ? await fromDatabase(options)
    : await fromDirectory(options, options.config.directory);
}

async function fromDatabase(options: PolicySourceOptions): Promise<RunningPolicy> {
  const policy = createDatabasePolicy({
    store: options.store,
    tenant: options.tenant,
    compile: (documents) => compilePolicy(JSON.parse(documents) as unknown[], options.known),
    empty: compilePolicy([]),
    onRunning: options.onRunning,
    onError: (digest, message) => options.onRefused([{ file: digest, message }]),
  });
  await policy.refresh();
  return { ...policy, close: () => undefined };
}

async function fromDirectory(options: PolicySourceOptions, directory: string): Promise<RunningPolicy> {
  const watched = await watchPolicy({
    directory,
    ...options.known,
    onRevision: (revision) => {
      policy.offer(revision);
      void policy.record().catch(options.onError);
    },
    onError: options.onRefused,
  });
  const policy = createRecordedPolicy(
    (revision) => record(options, directory, revision),
    () => watched.lastError(),
    options.onRunning,
  );
  try {
    policy.offer(watched.current());
    await policy.record();
  } catch (error) {
    watched.close();
    throw error;
  }
  return {
    current: () => policy.current(),
    lastError: () => policy.lastError(),
    refresh: () => policy.record(),
    status: () => ({ ready: true, detail: policy.lastError() ?? policy.current().digest }),
    close: () => watched.close(),
  };
}

/** The documents, and that they run from now on unless a replica with the same directory has said so already. */
async function record(options: PolicySourceOptions, directory: string, revision: PolicyRevision): Promise<void> {
  const { store, tenant, clock } = options;
  const { digest } = revision;
  const commit = await gitCommit(directory);
  const source = commit === undefined ? 'directory' : 'git';
  const message = commit === undefined ? '' : `git ${commit}`;
  const now = clock.now();
  await store.recordRevision(tenant, {
    digest,
    createdAt: now,
    creator: 'broker',
    source,
    message,
    documents: describeRevision(revision),
  });
  if ((await store.active(tenant))?.digest === digest) return;
  const { reevaluate } = revision;
  await store.activate(
    { tenant, digest, actor: 'broker', source, message, requestId: undefined, reevaluate, expected: undefined },
    activationEvent(tenant, 'broker', now, { digest, source, message, reevaluate }),
  );
}

/** The files of an ApplyPolicy request, by the rules of a directory. */
export function compileFiles(known: KnownNames): CompileFiles {
  return (files) => {
    const result = loadPolicyTexts(files, known);
    if (result.ok) return { revision: result.revision };
    return {
      mistakes: result.issues.map(({ file, line, column, path, message, hint }) => ({
        place: `${file}:${line}:${column}`,
        message: `${path === '' ? '' : `${path}: `}${message}${hint === undefined ? '' : `; ${hint}`}`,
      })),
    };
  };
}

const keptRevisions = 8;

/** Revisions that do not run any more, for explaining what they decided; the last few stay compiled. */
export function compiledRevisions(
  store: Pick<PolicyStore, 'documents'>,
  { environment }: KnownNames,
): (digest: string) => Promise<PolicyRevision> {
  const kept = new Map<string, PolicyRevision>();
  return async (digest) => {
    const known = kept.get(digest);
    if (known !== undefined) return known;
    const documents = await store.documents(digest);
    if (documents === undefined) {
      throw new BrokerError('REVISION_NOT_FOUND', `no policy revision has the digest ${digest}`);
    }
    // Targets and trust domains may have been taken out of the configuration since.
    const revision = compilePolicy(
      JSON.parse(documents) as unknown[],
      environment === undefined ? {} : { environment },
    );
    if (kept.size >= keptRevisions) kept.delete(kept.keys().next().value!);
    kept.set(digest, revision);
    return revision;
  };
}
