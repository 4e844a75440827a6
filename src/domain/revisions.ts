import type { AuditEvent } from './audit.ts';
import type { Caller } from './caller.ts';
import { BrokerError, fieldInvalid } from './errors.ts';
import type { PolicyRevision, PolicySource } from './policy.ts';
import { diffDocuments, type DocumentChange } from './revision-diff.ts';
import type { Page } from './store.ts';
import type { Clock, Instant } from './time.ts';

export type RevisionSource = 'directory' | 'git' | 'api';
export type ActivationSource = RevisionSource | 'rollback';

/** One immutable set of policy documents. */
export interface RevisionRecord {
  digest: string;
  createdAt: Instant;
  creator: string;
  source: RevisionSource;
  message: string;
}

/** One change of the revision that runs. */
export interface Activation {
  activationId: string;
  digest: string;
  activatedAt: Instant;
  actor: string;
  source: ActivationSource;
  message: string;
  reevaluation: { decided: number; ended: number; finishedAt: Instant | undefined } | undefined;
}

export interface NewRevision extends RevisionRecord {
  /** Canonical JSON. */
  documents: string;
}

export interface NewActivation {
  tenant: string;
  digest: string;
  actor: string;
  source: ActivationSource;
  message: string;
  requestId: string | undefined;
  reevaluate: boolean;
  /** Written only while this one runs; undefined: whatever runs. */
  expected: string | undefined;
}

export interface PolicyStore {
  /** Does nothing when the tenant has it already. */
  recordRevision(tenant: string, revision: NewRevision): Promise<void>;
  /**
   * Writes activation, reevaluation and event in one transaction, and wakes every replica. Undefined when another than
   * `expected` runs. The same actor and request_id again gives the first one's row.
   */
  activate(activation: NewActivation, event: AuditEvent): Promise<Activation | undefined>;
  /** The newest activation. */
  active(tenant: string): Promise<Activation | undefined>;
  byRequest(tenant: string, actor: string, requestId: string): Promise<Activation | undefined>;
  activations(tenant: string, pageSize: number, after: string | undefined): Promise<Page<Activation>>;
  /** At most two of the tenant's revisions, whose digest begins so. */
  find(tenant: string, beginning: string): Promise<RevisionRecord[]>;
  revisions(tenant: string, pageSize: number, after: string | undefined): Promise<Page<RevisionRecord>>;
  /** Whoever asks has the digest from a record of its own tenant. */
  documents(digest: string): Promise<string | undefined>;
}

export interface PolicyFile {
  file: string;
  text: string;
}

/** What is wrong, each as `file:line:column`. */
export interface PolicyMistake {
  place: string;
  message: string;
}

export type CompileFiles = (
  files: readonly PolicyFile[],
) => { revision: PolicyRevision } | { mistakes: readonly PolicyMistake[] };

export interface RevisionsOptions {
  clock: Clock;
  policy: PolicySource;
  store: PolicyStore;
  /** Whether the database drives the tenant's policy, rather than a directory. */
  writable: (tenant: string) => boolean;
  /** By the names that the tenant's policy may use. */
  compile: (tenant: string) => CompileFiles;
  /** Canonical JSON of a compiled revision's documents. */
  describe: (revision: PolicyRevision) => string;
  /** Open leases that the revision does not allow, over a bounded number. */
  preview: (tenant: string, revision: PolicyRevision) => Promise<{ decided: number; ended: number }>;
  /** Looks at once which revision is to run. */
  refresh: () => Promise<void>;
}

export interface Applied {
  revision: RevisionRecord;
  changes: DocumentChange[];
  activated: boolean;
  preview: { decided: number; ended: number } | undefined;
}

export type Revisions = ReturnType<typeof createRevisions>;

const maxMessage = 1_024;
/** As many as a person mends in one go; google.rpc.BadRequest has to fit a header. */
const maxMistakes = 50;

export function createRevisions(options: RevisionsOptions) {
  const { store, policy } = options;

  return {
    apply: async (
      caller: Caller,
      request: {
        requestId: string;
        files: readonly PolicyFile[];
        message: string;
        dryRun: boolean;
        reevaluate: boolean;
        expected: string;
      },
    ): Promise<Applied> => {
      // Nothing at all is a slip, not a policy that denies everything.
      if (request.files.length === 0) throw fieldInvalid('files', 'must hold the policy documents');
      if (!request.dryRun) writable(caller);
      bounded(request.message);
      const result = options.compile(caller.tenant)(request.files);
      if ('mistakes' in result) throw invalid(result.mistakes);
      const { revision } = result;
      const documents = options.describe(revision);
      const before = await running(caller);
      const record: RevisionRecord = {
        digest: revision.digest,
        createdAt: options.clock.now(),
        creator: caller.workload,
        source: 'api',
        message: request.message,
      };
      const changes = diffDocuments(JSON.parse(before.documents), JSON.parse(documents));
      if (request.dryRun) {
        const preview = request.reevaluate ? await options.preview(caller.tenant, revision) : undefined;
        return { revision: record, changes, activated: false, preview };
      }
      const repeated = await earlier(caller, request.requestId, revision.digest);
      if (repeated === undefined) {
        await store.recordRevision(caller.tenant, { ...record, documents });
        const reevaluate = request.reevaluate || revision.reevaluate;
        await activate(caller, revision.digest, 'api', { ...request, reevaluate });
      }
      const [stored] = await store.find(caller.tenant, revision.digest);
      return { revision: stored ?? record, changes, activated: true, preview: undefined };
    },

    rollback: async (
      caller: Caller,
      request: { requestId: string; digest: string; message: string; reevaluate: boolean },
    ): Promise<{ revision: RevisionRecord; changes: DocumentChange[] }> => {
      bounded(request.message);
      const digest = digestField(request.digest);
      writable(caller);
      const revision = await named(caller, digest);
      const documents = await documentsOf(revision.digest);
      const before = await running(caller);
      if ((await earlier(caller, request.requestId, revision.digest)) === undefined) {
        await activate(caller, revision.digest, 'rollback', { ...request, expected: '' });
      }
      return { revision, changes: diffDocuments(JSON.parse(before.documents), JSON.parse(documents)) };
    },

    activations: async (caller: Caller, pageSize: number, after: string | undefined) => {
      return await store.activations(caller.tenant, pageSize, after);
    },

    revisions: async (caller: Caller, pageSize: number, after: string | undefined) => {
      return await store.revisions(caller.tenant, pageSize, after);
    },

    get: async (caller: Caller, digest: string): Promise<{ revision: RevisionRecord; documents: string }> => {
      const revision = await named(caller, digest === '' ? active(caller) : digest);
      return { revision, documents: await documentsOf(revision.digest) };
    },

    diff: async (caller: Caller, from: string, to: string) => {
      const [a, b] = [await named(caller, from), await named(caller, to === '' ? active(caller) : to)];
      const [before, after] = [await documentsOf(a.digest), await documentsOf(b.digest)];
      return { from: a.digest, to: b.digest, changes: diffDocuments(JSON.parse(before), JSON.parse(after)) };
    },

    /** Digest of the one that runs on this replica. */
    active,

    named,
  };

  function active({ tenant }: Pick<Caller, 'tenant'>): string {
    return policy.current(tenant).digest;
  }

  function writable({ tenant }: Caller): void {
    if (options.writable(tenant)) return;
    throw new BrokerError(
      'POLICY_SOURCE',
      "this broker's policy is a directory: change the files there, or let `policy: { source: database }` in its configuration hand policy to this method",
    );
  }

  async function running({ tenant }: Caller): Promise<{ digest: string; documents: string }> {
    const newest = options.writable(tenant) ? await store.active(tenant) : undefined;
    const digest = newest?.digest ?? policy.current(tenant).digest;
    return { digest, documents: (await store.documents(digest)) ?? '[]' };
  }

  async function earlier(caller: Caller, requestId: string, digest: string): Promise<Activation | undefined> {
    const found = await store.byRequest(caller.tenant, caller.workload, requestId);
    if (found !== undefined && found.digest !== digest) throw reused();
    return found;
  }

  async function activate(
    caller: Caller,
    digest: string,
    source: ActivationSource,
    request: { requestId: string; message: string; reevaluate: boolean; expected: string },
  ): Promise<void> {
    const expected = request.expected === '' ? undefined : request.expected;
    const { requestId, message, reevaluate } = request;
    const { tenant } = caller;
    const written = await store.activate(
      { tenant, digest, actor: caller.workload, source, message, requestId, reevaluate, expected },
      activationEvent(tenant, caller.workload, options.clock.now(), { digest, source, message, reevaluate }),
    );
    if (written === undefined) {
      throw new BrokerError(
        'POLICY_CHANGED',
        `another revision runs than ${expected}: look at what changed with \`leasehold policy diff\`, then apply again`,
      );
    }
    if (written.digest !== digest) throw reused();
    await options.refresh();
  }

  async function named({ tenant }: Pick<Caller, 'tenant'>, beginning: string): Promise<RevisionRecord> {
    const digest = digestField(beginning);
    const found = await store.find(tenant, digest);
    if (found.length === 1) return found[0]!;
    const what = found.length === 0 ? 'no policy revision has' : 'more than one policy revision has';
    throw new BrokerError('REVISION_NOT_FOUND', `${what} the digest ${digest}: \`leasehold policy list\` shows them`);
  }

  async function documentsOf(digest: string): Promise<string> {
    const documents = await store.documents(digest);
    if (documents === undefined)
      throw new BrokerError('REVISION_NOT_FOUND', `no policy revision has the digest ${digest}`);
    return documents;
  }
}

function digestField(beginning: string): string {
  const digest = beginning.startsWith('sha256:') ? beginning : `sha256:${beginning}`;
  if (/^sha256:[0-9a-f]{8,64}$/.test(digest)) return digest;
  throw fieldInvalid('digest', 'must be a digest such as sha256:0f1e…, or at least 8 digits of its beginning');
}

export function activationEvent(
  tenant: string,
  actor: string,
  at: Instant,
  detail: { digest: string; source: ActivationSource; message: string; reevaluate: boolean },
): AuditEvent {
  return { tenant, kind: 'policy.activated', at, actor, taskId: '', detail };
}

function bounded(message: string): void {
  if (message.length > maxMessage) throw fieldInvalid('message', `must be at most ${maxMessage} characters`);
}

function reused(): BrokerError {
  return new BrokerError('REQUEST_ID_REUSED', 'this request_id let another revision run: send a new one');
}

function invalid(mistakes: readonly PolicyMistake[]): BrokerError {
  const [first] = mistakes;
  const more = mistakes.length > 1 ? ` (and ${mistakes.length - 1} more)` : '';
  return new BrokerError('POLICY_INVALID', `${first?.place}: ${first?.message}${more}`, {
    violations: mistakes
      .slice(0, maxMistakes)
      .map(({ place, message }) => ({ field: place.slice(0, 256), description: message.slice(0, 500) })),
  });
}
