// Imports point inward (docs/architecture.md). scripts/check-boundaries.mjs runs these rules and holds a floor on the
// number of modules read: a compiler that this tool cannot read would otherwise give an empty, green result.
const folders = (...names) => `^src/(${names.join('|')})/`;

/** Siblings know the domain's ports, never each other: each can be replaced alone. */
const sibling = (name, others) => ({
  name: `${name}-knows-no-sibling`,
  severity: 'error',
  comment: `src/${name} imports none of its siblings; what they share is a port in src/domain.`,
  from: { path: folders(name) },
  to: { path: folders(...others) },
});
const siblings = ['storage', 'providers', 'attestors', 'api'];

/** @type {import('dependency-cruiser').IConfiguration} */
module.exports = {
  forbidden: [
    {
      name: 'domain-imports-nothing',
      severity: 'error',
      comment: 'The domain is pure: it imports nothing but itself, neither packages nor Node.',
      from: { path: folders('domain') },
      to: { pathNot: folders('domain') },
    },
    ...siblings.map((name) =>
      sibling(
        name,
        siblings.filter((other) => other !== name),
      ),
    ),
    {
      name: 'root-is-for-entries',
      severity: 'error',
      comment: 'src/root.ts wires everything; only what starts a broker imports it.',
      from: { path: '^src/', pathNot: '^src/(main\\.ts$|root\\.ts$|cli/|dev/|demo/)' },
      to: { path: '^src/root\\.ts$' },
    },
    {
      name: 'gen-is-for-the-edge',
      severity: 'error',
      comment: 'Wire types stop at the doors: the domain has its own.',
      from: { path: '^src/', pathNot: '^src/(main\\.ts$|root\\.ts$)|^src/(gen|api|server|cli|verifier|demo|dev)/' },
      to: { path: folders('gen') },
    },
    {
      name: 'cli-and-tests-are-leaves',
      severity: 'error',
      comment: 'Nothing that serves imports the command line, the demo, the tests or the benchmarks.',
      from: { path: '^src/', pathNot: '^src/(main\\.ts$|cli/|demo/)' },
      to: { path: '^(src/(cli|demo)/|test/|bench/)' },
    },
    {
      name: 'no-cycles',
      severity: 'error',
      comment: 'A cycle is one module in several files.',
      from: {},
      to: { circular: true },
    },
    {
      name: 'resolvable',
      severity: 'error',
      comment: 'An import that is not found is not checked either.',
      from: {},
      to: { couldNotResolve: true },
    },
    {
      name: 'no-development-packages',
      severity: 'error',
      comment: 'What is installed in production is all that may be imported there.',
      from: { path: '^src/', pathNot: '^src/(dev|demo)/' },
      to: { dependencyTypes: ['npm-dev', 'npm-no-pkg', 'npm-unknown'] },
    },
  ],
  options: {
    doNotFollow: { path: 'node_modules' },
    tsPreCompilationDeps: true,
    tsConfig: { fileName: 'tsconfig.json' },
    enhancedResolveOptions: {
      exportsFields: ['exports'],
      conditionNames: ['import', 'node', 'types', 'default'],
      extensions: ['.ts', '.js', '.d.ts', '.mjs', '.cjs'],
    },
  },
};
