import { createHash, randomBytes, randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { setImmediate, setTimeout as timer } from 'node:timers/promises';
import { adminService, type Component } from './api/admin-service.ts';
import { approvalService } from './api/approval-service.ts';
import { auditService } from './api/audit-service.ts';
import type { Service } from './api/call.ts';
import { credentialService } from './api/credential-service.ts';
import { lockService } from './api/lock-service.ts';
import { policyService } from './api/policy-service.ts';
import { reportService } from './api/report-service.ts';
import { revocationService } from './api/revocation-service.ts';
import { settlementService } from './api/settlement-service.ts';
import { signalService } from './api/signal-service.ts';
import { taskService } from './api/task-service.ts';
import { toolCallService } from './api/tool-call-service.ts';
import { createAttestation } from './attestors/attestation.ts';
import type { Config } from './config/config.ts';
import { policyNames } from './config/check-config.ts';
import { resolveRoles } from './config/roles.ts';
import { readSealingKey } from './config/secret-source.ts';
import { defaultTenant, tenantPath } from './config/tenant.ts';
import { isWorkloadPattern } from './config/workload-pattern.ts';
import { createApprovals } from './domain/approvals/approvals.ts';
import { createApprovalGate } from './domain/approvals/gate.ts';
import { createToolCalls } from './domain/calls/calls.ts';
import { createCallerResolver } from './domain/callers.ts';
import { createCredentials } from './domain/credentials.ts';
import { createHandover } from './domain/handover.ts';
import { idFactory } from './domain/ids.ts';
import { createEvidence } from './domain/evidence.ts';
import { createIssuer } from './domain/issue.ts';
import { createLockGuard } from './domain/locks/guard.ts';
import { createLocks } from './domain/locks/locks.ts';
import { createLockSettling } from './domain/locks/settling.ts';
import { openLockWatch } from './domain/locks/watch.ts';
import type { Provider } from './domain/provider.ts';
import { createDetectors } from './domain/detectors/detectors.ts';
import { createExplanations } from './domain/explanations.ts';
import { createReporter } from './domain/report.ts';
import { createReevaluator } from './domain/reevaluation.ts';
import { createRevisions } from './domain/revisions.ts';
import { createSettler } from './domain/settlement.ts';
import { createTasks } from './domain/tasks.ts';
import type { Reached } from './domain/telemetry.ts';
import type { Clock, Millis } from './domain/time.ts';
import { createSealer } from './keys/seal.ts';
import { createRequestProofs } from './dpop/requests.ts';
import { createKeyRing, type KeyRing } from './keys/signing-keys.ts';
import { jwksRoute, statusListRoute } from './key-routes.ts';
import { createMonitor } from './monitor.ts';
import { createMessenger } from './notify/messenger.ts';
import { createObservability } from './observability/observability.ts';
import { redactString } from './observability/redact.ts';
import { describeRevision } from './policy/canonical.ts';
import { compiledRevisions, compileFiles, openPolicy, policiesOf, type RunningPolicy } from './policy-source.ts';
import { createJwtProvider, type JwtIssuer } from './providers/jwt/provider.ts';
import { buildStatusListToken, statusListSize, statusReferences } from './providers/jwt/status-list.ts';
import { createPostgresProvider } from './providers/postgres/provider.ts';
import { createVaultProvider } from './providers/vault/provider.ts';
import { jwksCacheAge, revokeTimeout, statusListTtl } from './root-bounds.ts';
import {
  attestors,
  componentOwners,
  groupsOf,
  installationMark,
  postgresTargets,
  sealingKey,
  tenantBounds,
  vaultServers,
  webhookEndpoints,
  webhooksOf,
} from './root-options.ts';
import { wireSettlement } from './root-settlement.ts';
import { openTransmitters, wireSignals } from './root-signals.ts';
import { createDoors } from './server/doors.ts';
import { openStorage } from './storage/storage.ts';
import { createTaskCache } from './storage/task-cache.ts';
import { version } from './version.ts';
import { startLoop } from './workers/loop.ts';

export interface BrokerOptions {
  config: Config;
  clock?: Clock;
  /** Receives log lines. */
  write?: (line: string) => void;
  /** For fault tests: called where the process may be killed. */
  reached?: Reached;
  /** Served on both doors beside the broker's own, behind the same chain. For benchmarks. */
  services?: readonly Service[];
}

export interface Broker {
  grpcPort: number;
  httpPort: number;
  /** Answers what is in flight, tells open streams, then lets go of everything. */
  stop(graceMs?: Millis): Promise<void>;
}

const maxClockOffset: Millis = 10_000;
/** For letting go of workers and connections when the calls in flight have used up the grace. */
const leastCloseTime: Millis = 1_000;

/** The composition root: configuration in, running broker out. The only place that wires. */
export async function startBroker(options: BrokerOptions): Promise<Broker> {
  const { config } = options;
  const clock = options.clock ?? { now: () => Date.now() };
  const reached = options.reached ?? (() => undefined);
  const observability = createObservability({
    ...config.log,
    write: options.write ?? ((line) => void process.stderr.write(line)),
    processMetrics: true,
  });
  const { emit } = observability;
  const mark = installationMark(config);
  const newId = idFactory(() => clock.now(), randomBytes, mark);
  const replicaId = newId('rep');
  const startedAt = clock.now();
  emit('broker.starting', { version, replicaId });

  // What was opened is closed in reverse order, at a failed start as well as at a stop.
  const closers: (() => Promise<void> | void)[] = [];
  const closeAll = async () => {
    for (const close of closers.splice(0).reverse()) await close();
  };
  try {
    if (config.database === undefined) {
      throw new Error(`${config.file}: database: is required to serve; \`leasehold dev\` brings a database of its own`);
    }
    const storage = await openStorage({
      url: config.database.url.read(),
      poolSize: config.database.poolSize,
      maxCallsPerTask: config.calls.maxPerTask,
      ...(config.database.caFile === undefined ? {} : { ssl: { ca: readFileSync(config.database.caFile, 'utf8') } }),
      onError: (error) => emit('storage.failed', { operation: 'connection', error }),
    });
    closers.push(() => storage.close());

    const monitor = createMonitor({
      clock,
      clockOffset: () => storage.clockOffset(() => clock.now()),
      maxClockOffset,
      onLost: (error) => emit('storage.lost', { error }),
      onRestored: (downMs) => emit('storage.restored', { downMs }),
      onSkew: (skewMs) => emit('storage.clock_skew', { skewMs }),
    });
    await monitor.check();

    const running = new Map<string, RunningPolicy>();
    for (const tenant of config.tenants) {
      const { name } = tenant;
      const opened = await openPolicy({
        config: tenant.policy,
        known: policyNames(config, tenant),
        store: storage.policies,
        tenant: name,
        clock,
        onRunning: ({ digest, agents, tools }) =>
          emit('policy.loaded', { tenant: name, revision: digest, agents: agents.size, tools: tools.size }),
        onRefused: (issues) => emit('policy.refused', { tenant: name, issues }),
        onError: (error) => emit('storage.failed', { operation: 'record-revision', error }),
      });
      closers.push(() => opened.close());
      running.set(name, opened);
    }
    const policy = policiesOf(running);

    const sealer = createSealer({
      current: sealingKey(config),
      previous: config.keys.previousSealingKeys.map((key) => readSealingKey(key)),
      random: randomBytes,
    });
    const issuers = new Map<string, JwtIssuer & { keyRing: KeyRing }>();
    for (const { name, issuer } of config.tenants) {
      const keyRing = createKeyRing({
        pool: storage.pool,
        sealer,
        clock,
        tenant: name,
        rotateEvery: config.keys.rotateEvery,
        publishAhead: config.keys.publishAhead,
        maxTokenLife: config.tasks.maxTtl,
        cacheAge: jwksCacheAge,
        skew: 60_000,
        maxClockOffset,
      });
      await keyRing.start();
      issuers.set(name, { issuer, keyRing, statusListUri: statusReferences(`${issuer}/status-lists`) });
    }
    const signingKeys = (tenant: string) => ({
      name: 'signing-keys',
      ...issuers.get(tenant)!.keyRing.status(clock.now()),
    });

    const postgres = createPostgresProvider({ targets: postgresTargets(config.targets), random: randomBytes, mark });
    closers.push(() => postgres.close());
    const vault = await createVaultProvider({
      servers: vaultServers(config.vault),
      store: storage.taskTokens,
      clock,
      random: Math.random,
      mark,
      events: {
        loggedIn: (server, method, lifeMs) => emit('vault.logged_in', { server, method, lifeMs }),
        loginFailed: (server, error) => emit('vault.login_failed', { server, error }),
        tokenLost: (server, tenant, taskId, leases) => emit('vault.token_lost', { server, tenant, taskId, leases }),
        tokenFailed: (server, tenant, taskId, error) => emit('vault.token_failed', { server, tenant, taskId, error }),
      },
    });
    closers.push(() => vault.close());
    const providers = new Map<string, Provider>([
      ['jwt', createJwtProvider({ clock, issuers })],
      ['postgres', postgres],
      ['vault', vault],
    ]);

    const attestation = createAttestation({
      attestors: attestors(config, monitor.later),
      clock: monitor.later,
      cacheSize: 50_000,
    });
    closers.push(() => attestation.close());
    const callerOf = createCallerResolver(resolveRoles(config.tenants), policy);

    const cache = createTaskCache(storage.tasks, storage.wake, 50_000);
    const watch = await openLockWatch(storage.locks);
    observability.gauge('locks_in_force', 'Locks in force, of all tenants.', () => watch.current().locks.length);
    const lockGuard = createLockGuard({ watch, get: cache.get });
    const settler = createSettler({
      clock: monitor.earlier,
      store: storage.settlement,
      providers,
      concurrency: 16,
      revokeTimeout,
      patience: 100,
      settleBound: config.tasks.settleBound,
      severalTenants: config.tenants.length > 1,
      giveUpAfter: 24 * 3_600_000,
      random: Math.random,
      sleep,
      reached,
      emit,
    });
    closers.push(() => settler.stop());
    const worker = (name: string, interval: Millis, round: () => Promise<boolean>) => {
      const loop = startLoop({ interval, round, onError: (error) => emit('worker.failed', { worker: name, error }) });
      closers.push(() => loop.stop());
      return loop;
    };
    const settling = worker('settle', 1_000, () => settler.tick());
    closers.push(storage.wake.onTask(() => settling.kick()));

    const owners = componentOwners(config);
    const { care, reconciler } = wireSettlement({
      clock: monitor.earlier,
      tenantOf: (provider, target) => owners.get(`provider/${provider}/${target.replace(/^vault:/, '')}`)!,
      storage,
      providers,
      settler,
      periodic: config.reconcile,
      observability,
      worker,
      kickSettler: () => settling.kick(),
      onClose: (close) => void closers.push(close),
    });
    const { signals, facts } = wireSignals({
      clock,
      newId,
      policy,
      storage,
      maxInForce: config.signals.maxInForce,
      worker,
      kickSettler: () => settling.kick(),
      observability,
      emit,
      onClose: (close) => void closers.push(close),
    });
    const transmitters = openTransmitters(config.signals, config.attestation.clockSkew, {
      clock,
      policy,
      signals,
      emit,
    });
    closers.push(() => transmitters.close());

    const tasks = createTasks({
      clock: monitor.earlier,
      newId,
      policy,
      tasks: storage.tasks,
      leases: storage.leases,
      facts,
      cache,
      wake: storage.wake,
      locks: lockGuard,
      record: (events) => storage.writer.record(events),
      defaultTtl: config.tasks.defaultTtl,
      maxTtl: config.tasks.maxTtl,
      kickSettler: () => settling.kick(),
      sleep,
      admit: () => monitor.admit(),
      reached,
      emit,
    });
    const lockSettling = createLockSettling({
      clock: monitor.earlier,
      store: storage.locks,
      close: (task, lock) => tasks.closeLocked(task, lock),
      kickSettler: () => settling.kick(),
      emit,
    });
    const closingLocked = worker('lock-settle', 1_000, () => lockSettling.tick());
    const locks = createLocks({
      clock,
      newId,
      policy,
      store: storage.locks,
      watch,
      tasks: storage.tasks,
      homeTenant: defaultTenant,
      ...config.locks,
      kickSettling: () => closingLocked.kick(),
      emit,
    });
    const locking = worker('locks', 1_000, () => locks.tick());
    closers.push(storage.wake.onLock(() => locking.kick()));
    worker('expire', 500, async () => (await tasks.closeDue(100)) === 100);
    worker('monitor', 2_000, async () => {
      await monitor.check();
      await Promise.all([...issuers.values()].map(({ keyRing }) => keyRing.tick()));
      return false;
    });
    // A token's period may be a minute, and a login's life as short.
    if (Object.keys(config.vault).length > 0) worker('vault', 1_000, () => vault.tick());
    const refreshPolicy = () => Promise.all([...running.values()].map((one) => one.refresh()));
    const following = worker('policy', 500, async () => {
      await refreshPolicy();
      return false;
    });
    closers.push(storage.wake.onPolicy(() => following.kick()));
    const reevaluators = new Map(
      policy.tenants.map((tenant) => [
        tenant,
        createReevaluator({
          clock,
          newId,
          policy,
          store: storage.reevaluation,
          facts,
          tenant,
          kickSettler: () => settling.kick(),
          emit,
        }),
      ]),
    );
    const reevaluating = worker('reevaluate', 1_000, async () => {
      let more = false;
      for (const reevaluator of reevaluators.values()) more = (await reevaluator.tick()) || more;
      return more;
    });
    const tenantConfig = new Map(config.tenants.map((tenant) => [tenant.name, tenant]));
    const revisions = createRevisions({
      clock,
      policy,
      store: storage.policies,
      writable: (tenant) => tenantConfig.get(tenant)!.policy.source === 'database',
      compile: (tenant) => compileFiles(policyNames(config, tenantConfig.get(tenant)!)),
      describe: describeRevision,
      preview: (tenant, revision) => reevaluators.get(tenant)!.preview(revision),
      refresh: async () => {
        await refreshPolicy();
        reevaluating.kick();
      },
    });
    const explanations = createExplanations({
      clock,
      policy,
      revisions,
      decisions: storage.decisions,
      facts,
      locks: lockGuard,
      compiled: compiledRevisions(storage.policies, { environment: config.environment }),
    });
    worker('forget', 60_000, async () => {
      await storage.settlement.forgetRevocations(monitor.earlier.now() - 60_000);
      return false;
    });

    const outbox = { endpoints: webhooksOf(config), newId };
    const approvalStore = storage.approvals(outbox);
    const limits = { maxPending: config.approvals.maxPending, perHour: config.approvals.requestsPerHour };
    const messenger = createMessenger({
      clock,
      store: storage.notifications,
      endpoints: webhookEndpoints(config),
      random: Math.random,
      emit,
    });
    const messages = messenger.rounds.map((round) => worker('notify', 1_000, round));
    const kickMessenger = () => messages.forEach((loop) => loop.kick());
    const approvals = createApprovals({
      clock,
      newId,
      policy,
      store: approvalStore,
      tasks: storage.tasks,
      facts,
      groupsOf: groupsOf(config),
      limits,
      locks: lockGuard,
      wake: storage.wake,
      sleep,
      admit: () => monitor.admit(),
      kickMessenger,
      emit,
    });
    const handOver = createHandover({
      clock: monitor.earlier,
      policy,
      tasks: storage.tasks,
      store: storage.handover(outbox),
      facts,
      cache,
      locks: lockGuard,
      kickSettler: () => settling.kick(),
      kickMessenger,
      admit: () => monitor.admit(),
      emit,
    });
    worker('approvals', 500, async () => (await approvals.settleDue(100)) === 100);
    worker('forget-messages', 3_600_000, async () => {
      await messenger.forget();
      return false;
    });

    const issuerOptions = {
      clock,
      newId,
      policy,
      providers,
      cache,
      approvals: createApprovalGate({ newId, store: approvalStore, tasks: storage.tasks, limits, emit }),
      locks: lockGuard,
      tasks: storage.tasks,
      leases: storage.leases,
      writer: storage.writer,
      sent: () => setImmediate(),
      facts,
      renewalOverlap: config.tasks.renewalOverlap,
      admit: () => monitor.admit(),
      reached,
      emit,
    };
    const credentials = createCredentials({
      clock,
      issuer: createIssuer(issuerOptions),
      settler,
      leases: storage.leases,
      cache,
      wake: storage.wake,
      asOfNow: callerOf,
      newRequestId: randomUUID,
      sleep,
      emit,
    });

    const sha256 = (text: string) => createHash('sha256').update(text).digest('hex');
    const detectors = createDetectors({
      clock,
      policy,
      settings: config.signals.detectors,
      signals,
      locks,
      newRequestId: randomUUID,
      emit,
    });
    const toolCalls = createToolCalls({
      onRecorded: (call) => detectors.observe(call),
      clock,
      newId,
      policy,
      cache,
      store: storage.calls,
      providers,
      sha256,
      emit,
    });

    const sha256Stream = () => {
      const hash = createHash('sha256');
      return { update: (text: string) => void hash.update(text), end: () => hash.digest('hex') };
    };
    const evidence = createEvidence({
      clock,
      store: storage.evidence,
      visible: (caller, taskId) => tasks.visible(caller, taskId),
      record: (events) => storage.writer.record(events),
      newDigest: sha256Stream,
      emit,
    });

    const components = async (tenant: string): Promise<Component[]> => {
      const signal = AbortSignal.timeout(3_000);
      const all = [
        monitor.status(),
        { name: 'policy', ...running.get(tenant)!.status() },
        locks.status(tenant),
        signingKeys(tenant),
        ...attestation.status(),
        ...transmitters.status(clock.now()),
        ...(await Promise.all([postgres.check(signal), vault.check(signal)])).flat(),
      ];
      return all.filter(({ name }) => (owners.get(name) ?? tenant) === tenant);
    };
    const doors = createDoors({
      grpc: config.server.grpc,
      http: config.server.http,
      limits: {
        maxMessageBytes: config.server.limits.maxMessageBytes,
        callsPerSecond: config.server.limits.callsPerSecond,
        burst: config.server.limits.burst,
        streamsPerCaller: config.server.limits.maxStreams,
        maxDeadlineMs: config.server.limits.maxDeadline,
        defaultDeadlineMs: config.server.limits.defaultDeadline,
        perTenant: tenantBounds(config),
      },
      services: [
        taskService(tasks, handOver, randomUUID),
        credentialService(credentials, randomUUID, createRequestProofs(config.broker.issuer, clock)),
        revocationService({ clock: monitor.earlier, store: storage.revocations, wake: storage.wake, sleep }),
        approvalService(approvals),
        lockService({ locks, newRequestId: randomUUID, isWorkloadPattern }),
        toolCallService(toolCalls, { sha256, newRequestId: randomUUID, redact: redactString }),
        signalService(signals, randomUUID),
        auditService(tasks, storage.audit, storage.timeline, evidence),
        reportService(createReporter({ clock, policy, store: storage.reports, yieldNow: setImmediate }), clock),
        policyService({
          revisions,
          explanations,
          clock,
          environment: config.environment,
          maxMessageBytes: config.server.limits.maxMessageBytes,
          newRequestId: randomUUID,
        }),
        settlementService({ clock, care, reconciler, newRequestId: randomUUID }),
        adminService({
          clock,
          version,
          replicaId,
          startedAt,
          schemaVersion: storage.schemaVersion,
          policy,
          leases: storage.leases,
          components,
        }),
        ...(options.services ?? []),
      ],
      authenticate: async (token) => callerOf(await attestation.attest(token)),
      clock,
      ready: () => {
        // Asked by anybody: how many tenants there are is not told.
        const keys = policy.tenants.map((tenant) => signingKeys(tenant));
        const parts = [monitor.status(), keys.find(({ ready }) => !ready) ?? keys[0]!];
        return { ready: parts.every((part) => part.ready), components: parts };
      },
      routes: [
        ...transmitters.routes,
        ...[...issuers].flatMap(([tenant, { issuer, keyRing }]) => [
          jwksRoute(tenantPath(tenant), () => keyRing.jwks()),
          statusListRoute(tenantPath(tenant), async (number) =>
            buildStatusListToken({
              uri: `${issuer}/status-lists/${number}`,
              issuer,
              revoked: await storage.revocations.revokedIndexes(tenant, number, statusListSize, monitor.earlier.now()),
              signer: keyRing.signer(clock.now()),
              now: clock.now(),
              ttl: statusListTtl,
              life: statusListTtl * 4,
            }),
          ),
        ]),
      ],
      observability,
    });
    const ports = await doors.start();
    emit('broker.ready', ports);
    return {
      ...ports,
      stop: async (graceMs = config.server.shutdownGrace) => {
        const until = performance.now() + graceMs;
        await doors.stop(graceMs);
        // A target that hangs must not hold up the stop: what is not let go in time goes with the process.
        const closed = new AbortController();
        const left = Math.max(leastCloseTime, until - performance.now());
        await Promise.race([closeAll().finally(() => closed.abort()), sleep(left, closed.signal)]);
      },
    };
  } catch (error) {
    await closeAll();
    throw error;
  }
}

/** Resolves early, without an error, when the signal aborts. */
async function sleep(ms: Millis, signal: AbortSignal): Promise<void> {
  await timer(ms, undefined, { signal }).catch(() => undefined);
}
