import tseslint from 'typescript-eslint';

const pure = 'is not for the domain: time, randomness and settings come in as parameters';

export default tseslint.config(
  { ignores: ['dist/', 'src/gen/', 'coverage/', '.leasehold/', 'node_modules/'] },
  {
    files: ['**/*.ts'],
    extends: [tseslint.configs.base],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    linterOptions: { reportUnusedDisableDirectives: 'error' },
    rules: {
      '@typescript-eslint/await-thenable': 'error',
      '@typescript-eslint/consistent-type-imports': ['error', { disallowTypeAnnotations: false }],
      '@typescript-eslint/no-explicit-any': 'error',
      '@typescript-eslint/no-floating-promises': 'error',
      '@typescript-eslint/no-misused-promises': 'error',
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_', varsIgnorePattern: '^_' }],
      '@typescript-eslint/only-throw-error': 'error',
      '@typescript-eslint/return-await': ['error', 'error-handling-correctness-only'],
      '@typescript-eslint/switch-exhaustiveness-check': ['error', { considerDefaultExhaustiveForUnions: true }],
      eqeqeq: 'error',
      'no-console': 'error',
      'no-eval': 'error',
      'prefer-const': 'error',
    },
  },
  {
    files: ['**/*.mjs', '**/*.cjs', '*.js'],
    linterOptions: { reportUnusedDisableDirectives: 'error' },
    rules: { eqeqeq: 'error', 'no-unused-vars': 'error', 'prefer-const': 'error', 'no-unreachable': 'error' },
  },
  {
    // Time, randomness and settings are parameters, so that a decision can be replayed.
    files: ['src/domain/**/*.ts'],
    rules: {
      'no-restricted-syntax': [
        'error',
        { selector: "MemberExpression[object.name='Date'][property.name='now']", message: `Date.now ${pure}.` },
        { selector: "NewExpression[callee.name='Date'][arguments.length=0]", message: `new Date() ${pure}.` },
        { selector: "CallExpression[callee.name='Date']", message: `Date() ${pure}.` },
        { selector: "MemberExpression[object.name='Math'][property.name='random']", message: `Math.random ${pure}.` },
        { selector: "MemberExpression[object.name='process']", message: `process ${pure}.` },
        { selector: 'MemberExpression[object.name=/^(crypto|performance)$/]', message: `This global ${pure}.` },
        { selector: 'ImportExpression', message: 'A dynamic import in the domain hides what it depends on.' },
      ],
      'no-restricted-globals': ['error', 'setTimeout', 'setInterval', 'setImmediate', 'fetch', 'performance', 'crypto'],
      '@typescript-eslint/no-restricted-imports': [
        'error',
        { patterns: [{ group: ['node:*'], allowTypeImports: true, message: `A Node module ${pure}.` }] },
      ],
    },
  },
  {
    // What a person reads goes through these; elsewhere the log is the only output.
    files: ['src/cli/**/*.ts', 'src/demo/**/*.ts', 'bench/**/*.ts', 'test/**/*.ts'],
    rules: { 'no-console': 'off' },
  },
);
